"""Exact tiled evaluation of UniRepLKNet, for images larger than device memory.

A convolution needs a margin around its tile. Squeeze-and-excitation and global response normalisation need all positions.
So a block makes three passes over the tiles, and sums over the whole image after the first and the second one. Feature maps are
kept on the host; the device holds the activations of one tile.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.errors import UserError
from jaxseq.models import _unireplknet_blocks as parts
from jaxseq.models._unireplknet_merge import merge
from jaxseq.ops import _time


def tiled(model: Any, variables: dict, images: Any, tile: int = 512, features: bool = False) -> Any:
    """`model.apply(variables, images)` with at most `tile` x `tile` positions of a feature map on the device at a time.

    images [B, rows, columns, channels], on the host. Returns logits [B, classes], or with `features=True` the feature maps of all
    stages as numpy arrays. Sums are in float64 on the host; the result differs from an untiled one only by rounding.
    """
    if tile < 1:
        raise UserError(f"tile={tile} is not positive; make it at least 1")
    model, variables = merge(model, variables)
    params, maps = variables["params"], []
    x = np.asarray(images, model.dtype)
    x = _reduce(parts.Reduce(model.stages[0].width // 2, True, model.dtype), params["stem"], x, tile)
    for i, stage in enumerate(model.stages):
        x = _reduce(parts.Reduce(stage.width, dtype=model.dtype), params[f"reduce_{i}"], x, tile)
        for layer in range(stage.repeats):
            for j, kernel in enumerate(stage.group):
                block = parts.UniRepLKNetBlock(kernel=kernel, **dict(model.fields(stage)))
                own = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params[f"stage_{i}"][f"block_{j}"])
                x = _block(block, own, x, tile)
        maps.append(x)
    if features or not model.classes:
        return tuple(maps)
    mean_BD = jnp.asarray(x.mean((1, 2), dtype=np.float64), jnp.promote_types(model.dtype, jnp.float32))
    return model.apply(variables, mean_BD, method="classify")


class _Cut:
    """The positions of a feature map in tiles of one shape, at most `tile` per side; the last tiles may extend beyond the map."""

    def __init__(self, shape: tuple[int, int], tile: int):
        self.shape = shape
        self.sides = [-(-size // -(-size // tile)) for size in shape]

    def __iter__(self) -> Iterator["_Tile"]:
        starts = (range(0, size, side) for size, side in zip(self.shape, self.sides, strict=True))
        for corner in itertools.product(*starts):
            yield _Tile(self, corner)


class _Tile:
    def __init__(self, cut: _Cut, corner: tuple[int, int]):
        self.corner, self.sides = corner, cut.sides
        self.inside = [min(side, size - at) for at, side, size in zip(corner, cut.sides, cut.shape, strict=True)]

    def read(self, x: np.ndarray, stride: int = 1, rim: int = 0, after: int = 0) -> np.ndarray:
        """The part of `x` at stride * tile, with `rim` extra positions before it and `after` after it; zero outside the map."""
        bounds = [(stride * at - rim, stride * (at + side) + after) for at, side in zip(self.corner, self.sides, strict=True)]
        slices = [slice(max(start, 0), stop) for start, stop in bounds]
        cut = x[:, slices[0], slices[1]]
        before = [max(-start, 0) for start, _ in bounds]
        behind = [stop - start - b - n for (start, stop), b, n in zip(bounds, before, cut.shape[1:3], strict=True)]
        return np.pad(cut, ((0, 0), *zip(before, behind, strict=True), (0, 0)))

    def write(self, x: np.ndarray, y: jax.Array) -> None:
        (top, left), (rows, columns) = self.corner, self.inside
        x[:, top : top + rows, left : left + columns] = np.asarray(y)[:, :rows, :columns]

    def mask(self) -> np.ndarray:
        """[rows, columns, 1] bool: inside the map."""
        rows, columns = (np.arange(side) < n for side, n in zip(self.sides, self.inside, strict=True))
        return (rows[:, None] & columns)[..., None]


def _sum(x_BYXD: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(mask, x_BYXD, 0), axis=(1, 2), dtype=_time.accumulation_dtype(x_BYXD))


@functools.partial(jax.jit, static_argnames="module")
def _reduced(module, params, x_BYXI):
    return module.apply({"params": params}, x_BYXI, "VALID")


@functools.partial(jax.jit, static_argnames="module")
def _spatial(module, params, x_BYXD, mask):
    """(the block's `spatial` output on a tile, its sums over positions), from the tile with its margin."""
    h_BYXD = module.apply({"params": params}, x_BYXD, False, "VALID", method="spatial")
    return h_BYXD, _sum(h_BYXD, mask)


@functools.partial(jax.jit, static_argnames="module")
def _gate(module, params, mean_BD):
    return module.apply({"params": params}, mean_BD, method="gate")


@functools.partial(jax.jit, static_argnames="module")
def _squares(module, params, h_BYXD, gate_BD, mask):
    h_BYXF = module.apply({"params": params}, h_BYXD, gate_BD, method="expand")
    return _sum(jnp.square(h_BYXF.astype(_time.accumulation_dtype(h_BYXF))), mask)


@functools.partial(jax.jit, static_argnames="module")
def _finish(module, params, x_BYXD, h_BYXD, gate_BD, square_BF):
    def branch(block):
        return block.contract(block.expand(h_BYXD, gate_BD), square_BF)

    return x_BYXD + module.apply({"params": params}, method=branch)


def _reduce(module, params, x: np.ndarray, tile: int) -> np.ndarray:
    shape = tuple((size + 1) // 2 for size in x.shape[1:3])
    out = np.empty((x.shape[0], *shape, module.width), x.dtype)
    for part in _Cut(shape, max(tile // 2, 1)):
        part.write(out, _reduced(module, params, part.read(x, stride=2, rim=1)))
    return out


def _block(block, params, x: np.ndarray, tile: int) -> np.ndarray:
    parts, rim = list(_Cut(x.shape[1:3], tile)), block.kernel // 2
    acc = jnp.promote_types(block.dtype, jnp.float32)
    h, sums = np.empty_like(x), np.zeros((x.shape[0], block.width))
    for part in parts:
        h_BYXD, sum_BD = _spatial(block, params, part.read(x, rim=rim, after=rim), part.mask())
        part.write(h, h_BYXD)
        sums += np.asarray(sum_BD, np.float64)
    gate_BD = _gate(block, params, jnp.asarray(sums / (x.shape[1] * x.shape[2]), acc).astype(block.dtype))

    squares = np.zeros((x.shape[0], 4 * block.width))
    for part in parts:
        squares += np.asarray(_squares(block, params, part.read(h), gate_BD, part.mask()), np.float64)

    out, square_BF = np.empty_like(x), jnp.asarray(squares, acc)
    for part in parts:
        part.write(out, _finish(block, params, part.read(x), part.read(h), gate_BD, square_BF))
    return out
