"""Shared by the steps that remove heads or channels."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxseq import weights
from jaxseq.compress._work import Work
from jaxseq.errors import UserError
from jaxseq.layers import Parameter, Units
from jaxseq.models import _stack


class Removable(NamedTuple):
    """The parameters of a mixer in one segment."""

    prefix: str
    units: Units
    boxes: dict[str, Parameter]
    arrays: dict[str, Any]


def apply(work: Work, kind: str, part: float) -> Work:
    """Removes a fraction of the heads or channels of each mixer: in each layer, those that contribute least to the output.

    The contribution of a unit u is |X_u W_u|^2 = tr(W_u^T X_u^T X_u W_u). X_u are its inputs to the output projection on
    calibration data, and W_u are its weights in that projection.
    """
    if "stack" not in work.config.model:
        raise UserError(f"{kind} are removed from causal language models only, not from a {work.config.model.kind}")
    found, fields, left = [], {}, {}
    for n, (block, segment) in enumerate(zip(work.model.blocks, _stack.parse(work.config.model.stack), strict=True)):
        for mixer, label in zip(block.mixers, segment.labels, strict=True):
            own, prefix = mixer.units(kind), f"blocks_{n}/{mixer.name}"
            keep = 0 if isinstance(own, str) else own.count - round(part * own.count)
            if isinstance(own, str) or not 0 < keep < own.count:
                left[prefix] = own if isinstance(own, str) else f"{part:g} of its {own.count} {kind} is none or all"
                continue
            found.append((_removable(work, prefix, own), keep))
            fields |= {f"model.{label}.{name}": value for name, value in own.fields(keep).items()}
    if not found:
        raise UserError(f"no {kind} can be removed from this model: {'; '.join(sorted(set(left.values())))}")
    grams, new = work.calibration.grams(work.config, work.params), {}
    for one, keep in found:
        work.say(f"{one.prefix}: {keep} of {one.units.count} {kind} are kept")
        new |= _cut(one, np.argsort(-scores(one, grams), axis=1, kind="stable")[:, :keep])
    return work.configured(fields).replaced(new, left)


def _removable(work: Work, prefix: str, units: Units) -> Removable:
    return Removable(prefix, units, *plain(work, prefix))


def plain(work: Work, prefix: str) -> tuple[dict[str, Parameter], dict[str, Any]]:
    """The boxes and arrays of a mixer's parameters. Raises UserError if an earlier step has changed their types, or if other
    parameters depend on their sizes."""
    if work.config.model.repeat_rank:
        raise UserError("the changes of model.repeat_rank have the sizes of the matrices, so heads, channels and states stay")
    inside = lambda tree: {path: leaf for path, leaf in weights.leaves(tree).items() if path.startswith(f"{prefix}/")}  # noqa: E731
    boxes, arrays = inside(work.boxes), inside(work.params)
    if boxes.keys() != inside(work.plain).keys():
        raise UserError("heads, channels, states and layers are removed from plain weights; put these steps first in the recipe")
    return boxes, arrays


def members(units: Units, axis: str, size: int) -> np.ndarray:
    """[count, …]: the indices of each unit along an axis of this size."""
    index = np.arange(size)
    return index.reshape(-1, units.count).T if axis == "mlp" else index.reshape(units.count, -1)


def scores(part: Removable, grams: dict[str, np.ndarray]) -> np.ndarray:
    """[layers, count]: the contribution of each unit to the mixer's output."""
    for path, box in part.boxes.items():
        inputs = box.names[: len(box.contracts) + 1][1:]
        if not box.contracts or box.names[-1] != "embed" or not set(inputs) & set(part.units.axes):
            continue
        w_NIO = np.asarray(weights.matrices(box, part.arrays[path]), np.float64)
        sizes = box.value.shape[1 : 1 + len(box.contracts)]
        at = next(i for i, name in enumerate(inputs) if name in part.units.axes)
        index = np.moveaxis(np.arange(math.prod(sizes)).reshape(sizes), at, 0)
        rows = index[members(part.units, inputs[at], sizes[at])].reshape(part.units.count, -1)
        added = lambda w_IO, gram_II, own: np.sum(w_IO[own] * (gram_II[np.ix_(own, own)] @ w_IO[own]))  # noqa: E731
        return np.array([[added(w, gram, own) for own in rows] for w, gram in zip(w_NIO, grams[path], strict=True)])
    raise ValueError(f"{part.prefix} has no map from its units to the residual stream")


def _cut(part: Removable, kept: np.ndarray) -> dict[str, Any]:
    """The arrays with only these units [layers, kept], in their original order."""
    found = {}
    for path, box in part.boxes.items():
        array = np.asarray(part.arrays[path])
        for axis, name in enumerate(box.names):
            if name in part.units.axes:
                own = members(part.units, name, array.shape[axis])
                index = [np.sort(own[np.sort(units)].reshape(-1)) for units in kept]
                array = np.stack([np.take(x, i, axis - 1) for x, i in zip(array, index, strict=True)])
        found[path] = jnp.asarray(array)
    return found
