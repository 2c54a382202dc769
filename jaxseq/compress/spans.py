"""Attention with adaptive spans that reads and stores only the tokens that its heads see: spans, without an argument.

Every key head of `adaptive_span` gets a window of its learned span and the ramp, so nothing changes but memory and time. Layers
differ in their windows, so a repeated block is written as several in `model.stack`, one for each run of layers with equal
windows.
"""

import dataclasses
import itertools
from typing import Any

import numpy as np

from jaxseq import weights
from jaxseq.compress._work import Work, none
from jaxseq.config import from_dict, to_dict
from jaxseq.convert._table import unflatten
from jaxseq.errors import UserError
from jaxseq.mixers.adaptive_span import AdaptiveSpan
from jaxseq.models import _stack, restack


def apply(work: Work, argument: str) -> Work:
    """The same model with smaller windows."""
    none(argument, "spans")
    if work.config.model.weights:
        raise UserError("spans must come before steps that change the type of weights; put it first in the recipe")
    if work.config.model.get("repeat_rank") or work.config.model.get("repeat_scale"):
        raise UserError("spans would renumber the blocks that model.repeat_rank and repeat_scale belong to; leave it out")
    if "stack" not in work.config.model or not any(_adaptive(block) for block in work.model.blocks):
        raise UserError("spans applies to models with the mixer adaptive_span, and this model has none; leave it out")
    data, arrays = to_dict(work.config), weights.leaves(work.params)
    new = {path: x for path, x in arrays.items() if not path.startswith("blocks_")}
    segments: list[_stack.Segment] = []
    for n, (block, segment) in enumerate(zip(work.model.blocks, _stack.parse(work.config.model.stack), strict=True)):
        own = {path.partition("/")[2]: np.asarray(x) for path, x in arrays.items() if path.startswith(f"blocks_{n}/")}
        for rows, windows in _runs(block, segment, own):
            labels, renamed = _labelled(data["model"], segment.labels, windows, len(segments))
            for path, x in own.items():
                new[f"blocks_{len(segments)}/{_renamed(path, renamed)}"] = x[rows]
            work.say(f"blocks_{n}, layers {rows.start} to {rows.stop - 1}: {'; '.join(windows.values()) or 'unchanged'}")
            repeats = segment.repeats if segment.distinct else rows.stop - rows.start
            segments.append(segment._replace(labels=labels, repeats=repeats))
    data["model"]["stack"] = _stack.text(segments)
    return dataclasses.replace(work, config=from_dict(data), params=unflatten(new))


def _adaptive(block: Any) -> list[AdaptiveSpan]:
    return [mixer for mixer in block.mixers if isinstance(mixer, AdaptiveSpan)]


def _runs(block: Any, segment: _stack.Segment, arrays: dict[str, Any]) -> list[tuple[slice, dict[str, str]]]:
    """(rows, {mixer: windows}) of each run of layers with equal windows; of blocks that share weights there is one run."""
    found = {}
    for mixer in _adaptive(block):
        spans_LH = arrays[f"{mixer.name}/span"]
        found[mixer.name] = [mixer.needed(theta_H) for theta_H in (spans_LH.max(axis=0)[None] if segment.distinct else spans_LH)]
    if segment.distinct or not found:
        return [(slice(0, segment.own), {name: _text(windows[0]) for name, windows in found.items()})]
    runs, start = [], 0
    for windows, run in itertools.groupby(zip(*found.values(), strict=True)):
        stop = start + len(list(run))
        runs.append((slice(start, stop), dict(zip(found, map(_text, windows), strict=True))))
        start = stop
    return runs


def _text(windows: tuple[int, ...]) -> str:
    return " ".join(map(str, windows))


def _labelled(model: dict, labels: tuple[str, ...], windows: dict[str, str], number: int) -> tuple[tuple[str, ...], dict]:
    """(labels of a block with windows of its own, {old name of a mixer: its new one}); their sections are added to `model`."""
    new, renamed = [], {}
    for label, name in zip(labels, _stack.paths(labels), strict=True):
        if name not in windows:
            new.append(label)
            continue
        _check(model, label, labels)
        new.append(f"{label}{'_' if ':' in label else ':'}span{number}")
        model[new[-1]] = model[label] | {"windows": windows[name]}
        renamed[name] = new[-1]
    return tuple(new), renamed


def _check(model: dict, label: str, labels: tuple[str, ...]) -> None:
    """Raises UserError if the block would not be the same with another label."""
    texts = [value for value in model.get(model["block"], {}).values() if isinstance(value, str)]
    if labels.count(label) > 1 or any(label in text.split() for text in texts):
        raise UserError(f"spans gives each {label} its own label, but this block uses the label twice or names it in a field")


def _renamed(path: str, renamed: dict[str, str]) -> str:
    """The path of a parameter of a mixer, or of the norm or the shortcut that are named after it."""
    first, _, rest = path.partition("/")
    if renamed and (found := restack.owner(first, renamed)):
        before, old, after = found
        return f"{before}{renamed[old]}{after}/{rest}"
    return path
