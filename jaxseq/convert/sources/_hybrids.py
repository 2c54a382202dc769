"""Shared by the sources of hybrids: layers of several kinds as segments of a stack.

In most sources a layer is a token mixer and a channel mixer. All functions but `norms` accept other numbers of mixers.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxseq.convert._table import Entry, norm
from jaxseq.convert.sources._stacks import PLAIN
from jaxseq.models import _stack
from jaxseq.models.lm import LM

Layer = tuple[str, ...]  # the labels of its mixers: usually a token mixer and a channel mixer


class MixerPlace(NamedTuple):
    """One mixer of a stack: the path of the mixer and of its norm, and the published layer number of each of its rows."""

    label: str
    path: str
    norm: str
    layers: Sequence[int]


def segments(layers: Sequence[Layer]) -> list[tuple[int, tuple[Layer, ...]]]:
    """[(repeats, layers of the block)]: greedily, from the first layer on, the repeated pattern that covers most layers."""
    found, start = [], 0
    while start < len(layers):
        repeats, size = 1, 1
        for period in range(1, (len(layers) - start) // 2 + 1):
            count = 1
            while tuple(layers[start + count * period :][:period]) == tuple(layers[start : start + period]):
                count += 1
            if count > 1 and count * period > repeats * size:
                repeats, size = count, period
        found.append((repeats, tuple(layers[start : start + size])))
        start += repeats * size
    return found


def stack(layers: Sequence[Layer]) -> str:
    return " + ".join(f"{n}*({' '.join(label for layer in block for label in layer)})" for n, block in segments(layers))


def places(layers: Sequence[Layer]) -> Iterator[MixerPlace]:
    """All mixers of all segments."""
    first = 0
    for i, (repeats, block) in enumerate(segments(layers)):
        labels = tuple(label for layer in block for label in layer)
        stop = first + repeats * len(block)
        for j, (label, path) in enumerate(zip(labels, _stack.paths(labels), strict=True)):
            rows = range(first + j // len(block[0]), stop, len(block))
            yield MixerPlace(label, f"blocks_{i}/{path}", f"blocks_{i}/norm_{path}", rows)
        first = stop


def norms(layers: Sequence[Layer], names: tuple[str, str] | dict[str, str]) -> list[Entry]:
    """The norms. names: in a layer, of the norms of token mixer and channel mixer, or {label of a mixer: name of its norm}."""
    table = []
    for j, place in enumerate(places(layers)):
        name = names[place.label] if isinstance(names, dict) else names[j % 2]
        table += norm(place.norm, f"model.layers.{{layer}}.{name}", place.layers, bias=False)
    return table


def convolutions(ours: str, theirs: Sequence[str], sizes: Sequence[int], layers: Sequence[int]) -> Entry:
    """Depthwise convolutions (channels, 1, taps), oldest tap first, with `sizes` channels, as one [taps, channels], newest tap
    first."""

    def forward(*w):
        return (np.concatenate(w)[:, 0, ::-1].T,)

    def backward(w):
        return tuple(np.split(w.T[:, None, ::-1], np.cumsum(sizes)[:-1]))

    return Entry((ours,), tuple(theirs), forward, backward, layers)


def mixers(
    model: Any, kinds: dict[str, str | Callable[[Any], str]], block: str = "Residual", size: int = 2, **fields: Any
) -> list[tuple[Any, ...]] | None:  # fmt: skip
    """The `size` mixers of every layer, (token mixer, channel mixer) by default.

    None unless `model` is a causal LM with blocks of class `block`, whose mixers have classes in `kinds` ({class: label or
    function of the mixer}), mixers with the same label are equal, segments are those of `segments`, and other fields are as in
    PLAIN and `fields`. Of two mixers the first has a state, the second has none.
    """
    if not isinstance(model, LM) or any(getattr(model, name) != value for name, value in (PLAIN | fields).items()):
        return None
    found, blocks, alike = [], [], {}
    for repeats, each in zip(model.repeats, model.blocks, strict=True):
        names = [type(mixer).__name__ for mixer in each.mixers]
        if type(each).__name__ != block or len(names) % size or not set(names) <= set(kinds):
            return None
        chosen = [(kinds[name], mixer) for name, mixer in zip(names, each.mixers, strict=True)]
        labels = tuple(kind if isinstance(kind, str) else kind(mixer) for kind, mixer in chosen)
        if tuple(mixer.name for mixer in each.mixers) != _stack.paths(labels):
            return None
        if size == 2 and any((mixer.init_state(1, 1) == ()) != bool(i % 2) for i, mixer in enumerate(each.mixers)):
            return None
        unnamed = [mixer.clone(name=None, number=None) for mixer in each.mixers]
        if any(mixer != alike.setdefault(label, mixer) for label, mixer in zip(labels, unnamed, strict=True)):
            return None
        blocks.append((repeats, tuple(zip(*(labels[i::size] for i in range(size)), strict=True))))
        found += repeats * list(zip(*(each.mixers[i::size] for i in range(size)), strict=True))
    layers = [layer for repeats, layers in blocks for layer in repeats * layers]
    return found if blocks == segments(layers) else None
