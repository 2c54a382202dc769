"""The student of a migration before any training: the teacher's weights in a model with other mixers."""

import dataclasses
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxseq import recipes, registry, weights
from jaxseq.errors import UserError
from jaxseq.mixers.attention import Attention
from jaxseq.models import _stack, restack


class Target(NamedTuple):
    """What replaces the attention of a layer: a file of this folder, and its argument."""

    name: str
    module: ModuleType
    argument: str

    def label(self, old: str) -> str:
        """In model.stack. old: the label of the attention that it replaces."""
        kind = getattr(self.module, "MIXER", self.name)
        return old if self.name == "attention" else kind if kind == self.name else f"{kind}:{self.name}"


def targets(text: str) -> list[Target]:
    """Of consecutive layers. text: names separated by commas, repeated over the layers. Raises UserError for unknown names."""
    found = []
    for word in text.split(","):
        name, _, argument = word.strip().partition(":")
        if name not in registry.names("migrate"):
            known = ", ".join(registry.names("migrate"))
            raise UserError(f"attention cannot become {word.strip()!r}; choose one or more of: {known} (separated by commas)")
        found.append(Target(name, registry.load("migrate", name), argument))
    if {target.name for target in found} == {"attention"}:
        raise UserError("all layers would keep their attention; name what replaces it")
    return found[:1] if len({(target.name, target.argument) for target in found}) == 1 else found


def student(work: recipes.Candidate, wanted: list[Target], key: jax.Array) -> recipes.Candidate:
    """The model of `work` with the attention of consecutive layers replaced by `wanted`, cyclically. key: of new parameters.

    Raises UserError for a model without softmax attention, or with one that a target does not fit.
    """
    if not any(type(mixer) is Attention for block in work.model.blocks for mixer in block.mixers):
        kinds = sorted({type(mixer).__name__ for block in work.model.blocks for mixer in block.mixers})
        raise UserError(f"this model has no softmax attention that could be replaced; its mixers are {', '.join(kinds)}")
    segments, fields, chosen, lost = [], {}, [], {}  # chosen: (target or None, old mixer) of each mixer of a new block
    for segment, block in zip(_stack.parse(work.config.model.stack), work.model.blocks, strict=True):
        period = len(wanted) if any(type(mixer) is Attention for mixer in block.mixers) else 1
        groups, rest = divmod(segment.repeats, period)
        for repeats, length in ((groups, period), (1, rest)):
            if not repeats or not length:
                continue
            labels = []
            for target in wanted[:length]:
                for mixer, old in zip(block.mixers, segment.labels, strict=True):
                    replaces = target if type(mixer) is Attention else None
                    labels.append(replaces.label(old) if replaces else old)
                    chosen.append((replaces, mixer))
                    if replaces:
                        _add(fields, labels[-1], replaces.module.fields(mixer, replaces.argument), mixer, replaces)
                        lost |= dict.fromkeys(replaces.module.dropped(mixer), replaces.name)
            segments.append(_stack.Segment(repeats, tuple(labels), segment.fixed and length == 1, segment.distinct))
    for what, name in lost.items():
        work.say(f"{name} has no {what.removeprefix('a ')}: not taken over, to be made up for in training")
    new = work.configured({"model.stack": _stack.text(segments)} | fields)
    restack.check(work.model, new.model)
    return dataclasses.replace(new, params=_params(work, new, chosen, key))


def _add(fields: dict[str, Any], label: str, own: dict[str, Any], mixer: Attention, target: Target) -> None:
    """Adds the fields of a label. A window keeps the other fields of its attention."""
    if label == "attention:window":
        known = {f.name for f in dataclasses.fields(Attention)} - {f.name for f in dataclasses.fields(Attention.__mro__[1])}
        own = {name: getattr(mixer, name) for name in known} | own
    for name, value in own.items():
        if fields.setdefault(f"model.{label}.{name}", value) != value:
            raise UserError(f"two layers would need different model.{label}.{name}; {target.name} cannot replace both")


def _params(work: recipes.Candidate, new: recipes.Candidate, chosen: list, key: jax.Array) -> Any:
    fresh = new.model.init(key)["params"]
    old, arrays = restack.restacked(work.params, work.model, new.model), {}
    owned = iter(chosen)
    for n, block in enumerate(new.model.blocks):
        inside, start = weights.leaves(fresh[f"blocks_{n}"]), weights.leaves(old[f"blocks_{n}"])
        for mixer in block.mixers:
            target, before = next(owned)
            if target is None or target.name == "attention":
                continue
            part = lambda tree, name=mixer.name: {  # noqa: E731
                path.removeprefix(f"{name}/"): x for path, x in tree.items() if path.startswith(f"{name}/")
            }
            theirs, own = part(start), part(inside)
            start = {path: x for path, x in start.items() if not path.startswith(f"{mixer.name}/")}
            start |= {f"{mixer.name}/{name}": x for name, x in (own | target.module.arrays(before, theirs, own)).items()}
        arrays |= {f"blocks_{n}/{path}": x for path, x in start.items()}
    arrays |= {path: x for path, x in weights.leaves(old).items() if not path.startswith("blocks_")}
    wrong = [path for path, x in weights.leaves(fresh).items() if jnp.shape(arrays.get(path)) != x.shape]
    if wrong or arrays.keys() != weights.leaves(fresh).keys():
        raise ValueError(f"the new parameters do not fit the model: {', '.join(wrong) or 'other names'}")
    return weights.replaced(fresh, arrays, None)
