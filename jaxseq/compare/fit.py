"""One size for all: the depth and the width at which an architecture has the parameters that it is allowed.

Depth and width vary, everything else stays as its config says; only where no sound shape comes near enough, the hidden
width of the channel mixers varies too. Of the shapes within TOLERANCE of the budget the one whose width / layers is
nearest to that of the config is taken, and none that is more than LIMIT from it. Parameters are counted on shapes,
nothing is allocated.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

import jaxseq
from jaxseq.errors import UserError
from jaxseq.layers import Parameter
from jaxseq.models import _stack

TOLERANCE = 0.02
SOUND = 2.0  # a shape is sound if its width / layers is within this factor of the config's
LIMIT = 4.0  # where none is sound, the factor within which it must be
MARGIN = 0.06  # of what a parabola through three widths predicts: hidden sizes and ranks are rounded
GRAINS = (8, 4, 2)  # of the width
FACTORS = (0.95, 1.05, 0.9, 1.1, 0.85, 1.15, 0.8, 1.2)  # on hidden widths
KNOBS = (*((grain, 1.0) for grain in GRAINS), *((GRAINS[0], factor) for factor in FACTORS))


class Shape(NamedTuple):
    """A model's width, how often each segment of its stack is repeated, and the factor on its hidden widths."""

    width: int
    repeats: tuple[int, ...]
    factor: float = 1.0

    def distance(self, aspect: float) -> float:
        """How far width / layers is from `aspect`, as a factor >= 1."""
        return math.exp(abs(math.log(self.width / sum(self.repeats) / aspect)))


Counter = Callable[[int], tuple[int, tuple[int, ...]] | None]


def fit(config: ConfigDict, parameters: int, tolerance: float = TOLERANCE) -> ConfigDict:
    """A locked copy of `config` with another model.width and model.stack, within `tolerance` of `parameters`.

    Raises UserError, naming the nearest shape, if no shape comes that near, and whatever the config is at fault for.
    """
    segments = _stack.parse(config.model.stack)
    aspect = config.model.width / sum(segment.repeats for segment in segments)
    tried: dict[Shape, int] = {}
    for grain, factor in KNOBS:
        counter = functools.cache(functools.partial(_count_or_none, config, factor=factor))
        for shape in candidates(config, counter, grain, factor, parameters, aspect):
            sizes = counter(shape.width)
            if sizes is None:
                continue
            tried[shape] = total(sizes, shape.repeats)
            if abs(tried[shape] / parameters - 1) <= tolerance and shape.distance(aspect) <= SOUND:
                return reshape(config, shape)  # candidates come nearest shape first
    if not tried:
        count(config, config.model.width)  # says what is wrong with the config itself
        raise UserError(f"no shape of this config has about {parameters:,} parameters; choose a larger preset")
    near = [shape for shape, size in tried.items() if abs(size / parameters - 1) <= tolerance]
    if near:
        return reshape(config, min(near, key=lambda shape: shape.distance(aspect)))
    best = min(tried, key=lambda shape: abs(tried[shape] / parameters - 1))
    raise UserError(
        f"no shape has {parameters:,} parameters within {tolerance:.0%}; the nearest, {reshape(config, best).model.stack} of "
        f"width {best.width}, has {tried[best]:,}; choose another preset"
    )


def candidates(
    config: ConfigDict, counter: Counter, grain: int, factor: float, parameters: int, aspect: float
) -> Iterator[Shape]:
    """Shapes that are predicted to be near the budget, in order of their distance from `aspect`.

    Parameters grow as a parabola in the width; it is laid through three widths that the architecture can have.
    """
    vocab = config.model.vocab or 1
    widths = [w for w in range(grain, 2 * parameters // vocab + 1, grain) if w * vocab <= parameters * (1 + MARGIN)]
    segments = _stack.parse(config.model.stack)
    known: dict[int, np.ndarray] = {}
    for goal in (8, 48, 96):  # any three will do
        for width in sorted(widths, key=lambda w: abs(w - goal))[:8]:
            if width not in known and (sizes := counter(width)) is not None:
                known[width] = np.array([sizes[0], *sizes[1]], float)
                break
    if not known:
        return
    curve = np.polyfit(list(known), np.stack(list(known.values())), min(2, len(known) - 1))
    found = []
    for width in widths:
        fixed, *layers = sum(row * width ** (len(curve) - 1 - i) for i, row in enumerate(curve))
        for depth in range(1, int(parameters * (1 + MARGIN) / max(sum(layers), 1)) + 2):
            shape = Shape(width, scaled(segments, depth), factor)
            if shape.distance(aspect) > LIMIT:
                continue
            predicted = total((fixed, layers), shape.repeats)
            if abs(predicted / parameters - 1) <= TOLERANCE + MARGIN:
                found.append((shape.distance(aspect), abs(predicted / parameters - 1), shape))
    sound = [item for item in sorted(found) if item[0] <= SOUND]
    yield from (shape for _, _, shape in sound or sorted(found)[:8])


def total(sizes: tuple, repeats: tuple[int, ...]) -> float:
    fixed, layers = sizes
    return fixed + sum(n * size for n, size in zip(repeats, layers, strict=True))


def scaled(segments: Sequence[_stack.Segment], depth: int) -> tuple[int, ...]:
    """The segments' repeats in proportion, the largest of them `depth`; those that stand once always do."""
    most = max(segment.repeats for segment in segments)
    return tuple(1 if segment.fixed else max(1, round(segment.repeats * depth / most)) for segment in segments)


def reshape(config: ConfigDict, shape: Shape) -> ConfigDict:
    """A locked copy of the config in this shape."""
    segments = _stack.parse(config.model.stack)
    out = config.copy_and_resolve_references()
    with out.unlocked():
        times = ["" if s.fixed else f"{n}*" for n, s in zip(shape.repeats, segments, strict=True)]
        out.model.stack = " + ".join(f"{n}({' '.join(s.labels)})" for n, s in zip(times, segments, strict=True))
        if shape.factor != 1:
            for label, hidden in hidden_widths(config, shape.width).items():
                out.model[label].hidden = max(8, round(hidden * shape.factor / 8) * 8)
        out.model.width = shape.width
    return out.lock()


def hidden_widths(config: ConfigDict, width: int) -> dict[str, int]:
    """The hidden width of each mixer that lets it be set, as it comes out at this model width."""
    found = {}
    for label in _stack.labels(config.model.stack):
        if "hidden" not in config.model[label]:
            continue
        if config.model[label].hidden is not None:
            found[label] = config.model[label].hidden
            continue
        boxes = _boxes(reshape(config, Shape(width, (1,) * len(_stack.parse(config.model.stack)))))
        path = label.replace(":", "_")
        sizes = [
            size
            for keys, box in boxes
            for name, size in zip(box.names, box.value.shape, strict=True)
            if name == "mlp" and any(path == str(getattr(key, "key", "")).replace(":", "_") for key in keys)
        ]
        if sizes:
            found[label] = max(sizes)
    return found


def _boxes(config: ConfigDict) -> list:
    return jax.tree_util.tree_leaves_with_path(
        jaxseq.build(config).boxed()["params"], is_leaf=lambda leaf: isinstance(leaf, Parameter)
    )


def count(config: ConfigDict, width: int, factor: float = 1.0) -> tuple[int, tuple[int, ...]]:
    """Parameters outside the segments, and of one repeat of each segment, at this width."""
    segments = len(_stack.parse(config.model.stack))
    fixed, layers = 0, [0] * segments
    for path, box in _boxes(reshape(config, Shape(width, (1,) * segments, factor))):
        if box.names[:1] == ("layers",):
            layers[int(path[0].key.rpartition("_")[2])] += math.prod(box.value.shape)
        else:
            fixed += math.prod(box.value.shape)
    return fixed, tuple(layers)


def _count_or_none(config: ConfigDict, width: int, factor: float) -> tuple[int, tuple[int, ...]] | None:
    """None: the architecture cannot have this width (its heads do not divide it)."""
    try:
        return count(config, width, factor)
    except UserError:
        return None


def parameters_of(model) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.boxed()["params"]))
