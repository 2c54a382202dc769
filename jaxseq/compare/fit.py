"""Finds the depth and width at which an architecture has a given number of parameters.

Depth and width vary, and hidden widths vary in proportion to the width. Everything else is as in the config, including the
head size: the number of heads changes with the width. Only if no sound shape meets the budget do hidden widths vary on their
own, and after that the head size. A shape near the config's with other hidden widths is preferred to one of half the depth.
Among the shapes within TOLERANCE of the budget, the one with width / layers nearest to the config's is used. Shapes whose
ratio is more than a factor LIMIT away are excluded. Parameters are counted from shapes; nothing is allocated.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

import jaxseq
from jaxseq import registry
from jaxseq.errors import UserError
from jaxseq.layers import Parameter
from jaxseq.models import _stack

TOLERANCE = 0.02
SOUND = (1.5, 2.0)  # a shape is sound if its width / layers is within this factor of the config's; tried in this order
LIMIT = 4.0  # the factor allowed if no shape is sound
MARGIN = 0.06  # relative error allowed for the parabola's prediction, since hidden sizes and ranks are rounded
GRAINS = (8, 4, 2)  # of the width
FACTORS = (0.95, 1.05, 0.9, 1.1, 0.85, 1.15, 0.8, 1.2)  # on hidden widths
MOST = max(FACTORS)
SIZES = (*((grain, 1.0) for grain in GRAINS), *((GRAINS[0], factor) for factor in FACTORS))
MANY = 1000  # a depth at which segments that stay single hardly count
GROUPED = ("kv_heads", "value_heads")  # the config fields that hold numbers of heads, besides `heads`


class ModelSize(NamedTuple):
    """A model's width, how often each segment of its stack is repeated, and the factor on its hidden widths.

    exact: heads have the config's size; otherwise the nearest size that the width allows.
    """

    width: int
    repeats: tuple[int, ...]
    factor: float = 1.0
    exact: bool = True

    def distance(self, aspect: float) -> float:
        """How far width / layers is from `aspect`, as a factor >= 1."""
        return math.exp(abs(math.log(self.width / sum(self.repeats) / aspect)))


Counter = Callable[[int, float], tuple[int, tuple[int, ...]] | None]


def fit(config: ConfigDict, parameters: int, tolerance: float = TOLERANCE) -> ConfigDict:
    """A locked copy of `config` whose model.width and model.stack give `parameters` within the relative `tolerance`.

    Raises UserError if no shape comes that near (the message names the nearest one), and the errors of a bad config.
    """
    if "stack" not in config.model:
        raise UserError("only architectures with a model.stack can be fitted to a number of parameters; leave this one out")
    aspect = config.model.width / sum(segment.repeats for segment in _stack.parse(config.model.stack))
    most = widest(config, parameters, aspect)  # raises the errors of the config itself
    tried: dict[ModelSize, int] = {}
    for exact in (True, False):
        counter = functools.cache(functools.partial(_count_or_none, config, exact=exact))
        for limit in SOUND:
            found = _sound(config, parameters, tolerance, exact, limit, most, counter, tried)
            if found is not None:
                return reshape(config, found)
    near = [shape for shape, size in tried.items() if abs(size / parameters - 1) <= tolerance]
    if near:
        return reshape(config, min(near, key=lambda shape: (not shape.exact, shape.distance(aspect))))
    if not tried:
        raise UserError(f"no shape of this config has about {parameters:,} parameters; choose a larger preset")
    best = min(tried, key=lambda shape: abs(tried[shape] / parameters - 1))
    raise UserError(
        f"no shape has {parameters:,} parameters within {tolerance:.0%}; the nearest, {reshape(config, best).model.stack} of "
        f"width {best.width}, has {tried[best]:,}; choose another preset"
    )


def _sound(
    config: ConfigDict, parameters: int, tolerance: float, exact: bool, limit: float, most: int, counter: Counter,
    tried: dict[ModelSize, int],
) -> ModelSize | None:  # fmt: skip
    """The first shape within `limit` of the config's that meets the budget. Adds every shape counted to `tried`."""
    aspect = config.model.width / sum(segment.repeats for segment in _stack.parse(config.model.stack))
    before = None
    for grain, factor in SIZES:
        widths = possible_widths(config, parameters, grain, exact, most)
        if (widths, factor) == before:
            continue
        before = widths, factor
        for shape in candidates(config, counter, widths, factor, parameters, aspect):
            sizes = counter(shape.width, factor)
            if sizes is None:
                continue
            shape = shape._replace(exact=exact)
            tried[shape] = total(sizes, shape.repeats)
            if abs(tried[shape] / parameters - 1) <= tolerance and shape.distance(aspect) <= limit:
                return shape  # candidates come nearest shape first
    return None


def possible_widths(config: ConfigDict, parameters: int, grain: int, exact: bool, most: int) -> list[int]:
    """Multiples of `grain` up to `most` whose embedding alone fits the budget; if `exact`, only those that the heads divide."""
    vocab, heads, own = config.model.vocab or 1, _heads(config), config.model.width
    numbers = [number for fields in heads.values() for number in fields.values()] if exact else []
    widths = range(grain, min(2 * parameters // vocab, most) + 1, grain)
    return [w for w in widths if w * vocab <= parameters * (1 + MARGIN) and not any(n * w % own for n in numbers)]


def widest(config: ConfigDict, parameters: int, aspect: float) -> int:
    """A bound on the width of shapes within LIMIT of `aspect`: a layer grows at least as its width; twice that, to be safe."""
    segments, (_, sizes) = _stack.parse(config.model.stack), count(config, config.model.width)
    repeats = [segment.repeats for segment in segments]
    layer = max(total((0, sizes), tuple(repeats)) / sum(repeats), 1)
    return max(config.model.width, int(2 * math.sqrt(parameters * config.model.width * LIMIT * aspect / layer)))


def candidates(
    config: ConfigDict, counter: Counter, widths: Sequence[int], factor: float, parameters: int, aspect: float
) -> Iterator[ModelSize]:
    """Shapes predicted to be near the budget, in order of their distance from `aspect`.

    The prediction is a parabola in the width, fitted to three widths that the architecture can have, and linear in the
    hidden widths.
    """
    segments, curve = _stack.parse(config.model.stack), parabola(counter, widths, 1.0)
    if curve is None:
        return
    if factor != 1 and (wider := parabola(counter, widths, MOST)) is not None:
        curve = curve + (factor - 1) / (MOST - 1) * (wider - curve)
    found = []
    for width in widths:
        fixed, *layers = sum(row * width ** (len(curve) - 1 - i) for i, row in enumerate(curve))
        slope = total((0, layers), scaled(segments, MANY)) / MANY  # not the sum of the layers: some segments stay single
        deepest = min(parameters * (1 + MARGIN) / max(slope, 1), LIMIT * width / aspect)
        for depth in range(1, int(deepest) + 2):
            shape = ModelSize(width, scaled(segments, depth), factor)
            if shape.distance(aspect) > LIMIT:
                continue
            predicted = total((fixed, layers), shape.repeats)
            if abs(predicted / parameters - 1) <= TOLERANCE + MARGIN:
                found.append((shape.distance(aspect), abs(predicted / parameters - 1), shape))
    sound = [item for item in sorted(found) if item[0] <= SOUND[-1]]
    yield from (shape for _, _, shape in sound or sorted(found)[:8])


def parabola(counter: Counter, widths: Sequence[int], factor: float) -> np.ndarray | None:
    """Coefficients, highest power first, of the parameter counts that `count` returns."""
    known: dict[int, np.ndarray] = {}
    for goal in (8, 48, 96):  # any three will do
        for width in sorted(widths, key=lambda w: abs(w - goal))[:8]:
            if width not in known and (sizes := counter(width, factor)) is not None:
                known[width] = np.array([sizes[0], *sizes[1]], float)
                break
    return np.polyfit(list(known), np.stack(list(known.values())), min(2, len(known) - 1)) if known else None


def total(sizes: tuple, repeats: tuple[int, ...]) -> float:
    fixed, layers = sizes
    return fixed + sum(n * size for n, size in zip(repeats, layers, strict=True))


def scaled(segments: Sequence[_stack.Segment], depth: int) -> tuple[int, ...]:
    """The segments' repeats scaled in proportion, the largest to `depth`; a segment without a count stays single."""
    most = max(segment.repeats for segment in segments)
    return tuple(segment.repeated(round(segment.repeats * depth / most)).repeats for segment in segments)


def reshape(config: ConfigDict, shape: ModelSize) -> ConfigDict:
    """A locked copy of the config in this shape."""
    segments = _stack.parse(config.model.stack)
    out = config.copy_and_resolve_references()
    with out.unlocked():
        out.model.stack = _stack.text(s.repeated(n) for n, s in zip(shape.repeats, segments, strict=True))
        for label, hidden in hidden_widths(config, shape).items():
            out.model[label].hidden = max(8, round(hidden / 8) * 8)
        for label, numbers in heads_at(config, shape.width, shape.exact).items():
            out.model[label].update(numbers)
        out.model.width = shape.width
    return out.lock()


def _heads(config: ConfigDict) -> dict[str, dict[str, int]]:
    """{label: {field: number of heads}} of the config. A single head stays single, also a single key/value head."""
    found = {}
    for label in _stack.labels(config.model.stack):
        section = config.model[label]
        heads = section.get("heads")
        if heads and heads != 1:
            found[label] = {"heads": heads} | {name: section.get(name) for name in GROUPED if (section.get(name) or 1) != 1}
    return found


def heads_at(config: ConfigDict, width: int, exact: bool) -> dict[str, dict[str, int]]:
    """`_heads` at this width, for the config's head size and group size. Raises UserError if `exact` heads do not divide the
    width."""
    found = {}
    for label, fields in _heads(config).items():
        numbers = {name: number * width / config.model.width for name, number in fields.items()}
        found[label] = {name: max(1, round(number)) for name, number in numbers.items()}
        if exact and any(number < 1 or number % 1 for number in numbers.values()):
            raise UserError(f"the head size of {label} does not divide a width of {width}; choose another width")
    return found


def hidden_widths(config: ConfigDict, shape: ModelSize) -> dict[str, float]:
    """Hidden widths to set for this shape: those set in the config, in proportion to the width; with a factor, all of
    them."""
    found = {}
    for label in _stack.labels(config.model.stack):
        section, mixer = config.model[label], registry.load_class("mixers", label.split(":")[0])
        if "hidden" not in section or mixer.hidden_role == "other":
            continue
        factor = shape.factor if mixer.hidden_role == "channels" else 1.0
        if section.hidden is not None and (factor, shape.width) != (1, config.model.width):
            found[label] = section.hidden * shape.width / config.model.width * factor
        elif section.hidden is None and factor != 1:
            found[label] = mixer(**section.to_dict(), width=shape.width, parent=None).features * factor
    return found


def _boxes(config: ConfigDict) -> list:
    return jax.tree_util.tree_leaves_with_path(
        jaxseq.build(config).boxed()["params"], is_leaf=lambda leaf: isinstance(leaf, Parameter)
    )


def count(config: ConfigDict, width: int, factor: float = 1.0, exact: bool = True) -> tuple[int, tuple[int, ...]]:
    """(parameters outside the segments, [those of one repeat of each segment]) at this width. Segments with shared weights count
    as outside, because their parameters do not depend on the number of repeats."""
    segments = _stack.parse(config.model.stack)
    fixed, layers = 0, [0] * len(segments)
    for path, box in _boxes(reshape(config, ModelSize(width, (1,) * len(segments), factor, exact))):
        n = int(path[0].key.rpartition("_")[2]) if box.names[:1] == ("layers",) else None
        if n is None or segments[n].distinct:
            fixed += math.prod(box.value.shape)
        else:
            layers[n] += math.prod(box.value.shape)
    return fixed, tuple(layers)


def _count_or_none(config: ConfigDict, width: int, factor: float, exact: bool) -> tuple[int, tuple[int, ...]] | None:
    """As `count`; None if the architecture cannot have this width (its heads do not divide it)."""
    try:
        return count(config, width, factor, exact)
    except UserError:
        return None


def parameters_of(model: nn.Module) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.boxed()["params"]))
