"""Multi-scale deformable attention for images (Deformable DETR, Zhu et al. 2020, arXiv:2010.04159, §4.1, eq. 2 and 3).

A query attends to a few points of each of several images of a scene (levels, usually of decreasing resolution). Points and
weights are computed from the query alone, so a query costs the same whatever the size of the images.
"""

import math
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.errors import UserError
from jaxseq.layers import Linear, metadata, xavier_uniform
from jaxseq.ops import _time

Sizes = Sequence[tuple[int, int]]  # rows and columns of each level


def sample(image_BYXHV: jax.Array, points_BTHP2: jax.Array) -> jax.Array:
    """Values [B, T, H, P, V] of an image at points (x, y), interpolated bilinearly.

    (0, 0) is the upper left corner of the image and (1, 1) the lower right one, so the centre of pixel (i, j) is
    ((j + 0.5) / X, (i + 0.5) / Y); pixels outside are zero (torch's grid_sample with align_corners=False and zero padding). Each
    head has its own points and channels. Interpolates in the accumulation dtype.
    """
    chex.assert_rank([image_BYXHV, points_BTHP2], 5)
    batch, rows, columns, heads, size = image_BYXHV.shape
    acc = _time.accumulation_dtype(image_BYXHV, points_BTHP2)
    v_BHSV = jnp.moveaxis(image_BYXHV.reshape(batch, rows * columns, heads, size), 2, 1).astype(acc)

    def nearest(axis, count):
        """The two pixels on both sides and their weights. From one pixel outside on nothing is seen, so farther points can be
        clipped, which keeps the indices small."""
        place_BHTP = jnp.moveaxis(jnp.clip(points_BTHP2[..., axis].astype(acc) * count - 0.5, -1, count), 2, 1)
        first_BHTP = jnp.floor(place_BHTP)
        part_BHTP = place_BHTP - first_BHTP
        pixel_BHTP = first_BHTP.astype(jnp.int32)
        for index_BHTP, weight_BHTP in ((pixel_BHTP, 1 - part_BHTP), (pixel_BHTP + 1, part_BHTP)):
            inside_BHTP = (index_BHTP >= 0) & (index_BHTP < count)
            yield jnp.clip(index_BHTP, 0, count - 1), jnp.where(inside_BHTP, weight_BHTP, 0)

    across, total = list(nearest(0, columns)), jnp.zeros((), acc)
    for row_BHTP, down_BHTP in nearest(1, rows):
        for column_BHTP, right_BHTP in across:
            index_BHN1 = (row_BHTP * columns + column_BHTP).reshape(batch, heads, -1, 1)
            pixel_BHTPV = jnp.take_along_axis(v_BHSV, index_BHN1, axis=2).reshape(*row_BHTP.shape, size)
            total += (down_BHTP * right_BHTP)[..., None] * pixel_BHTPV
    return jnp.moveaxis(total, 1, 2)


def deformable_attention(v_BSHV: jax.Array, sizes: Sizes, points_BTHLP2: jax.Array, weights_BTHLP: jax.Array) -> jax.Array:
    """y [B, T, H, V] = sum_lp weights_lp v^l(points_lp) (eq. 3 without its projections), see `sample` for v^l(p).

    v: the pixels of all levels, row by row and level after level; sizes: rows and columns of each level. Sums are in the
    accumulation dtype; y has the dtype of v.

    Raises AssertionError if the shapes do not fit.
    """
    batch, pixels, heads, size = v_BSHV.shape
    ends = [sum(rows * columns for rows, columns in sizes[: i + 1]) for i in range(len(sizes))]
    time, points = points_BTHLP2.shape[1], points_BTHLP2.shape[4]
    chex.assert_equal(ends[-1], pixels)
    chex.assert_shape(points_BTHLP2, (batch, time, heads, len(sizes), points, 2))
    chex.assert_shape(weights_BTHLP, points_BTHLP2.shape[:-1])
    acc = _time.accumulation_dtype(v_BSHV, points_BTHLP2, weights_BTHLP)
    y_BTHV = jnp.zeros((batch, time, heads, size), acc)
    for level, ((rows, columns), level_BSHV) in enumerate(zip(sizes, jnp.split(v_BSHV, ends[:-1], axis=1), strict=True)):
        image_BYXHV = level_BSHV.reshape(batch, rows, columns, heads, size)
        v_BTHPV = sample(image_BYXHV, points_BTHLP2[:, :, :, level])
        y_BTHV += jnp.einsum("bthp,bthpv->bthv", weights_BTHLP[:, :, :, level].astype(acc), v_BTHPV)
    return y_BTHV.astype(v_BSHV.dtype)


def directions(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Initial offsets [H, L, P, 2]: head h looks in the direction 2 pi h / H, and its points are 1 to P pixels away, measured
    along the axis on which they are farther (Zhu et al. 2020, appendix A.4, and the released code)."""
    heads, levels, points, _ = shape
    angle_H = 2 * math.pi / heads * jnp.arange(heads, dtype=dtype)
    unit_H2 = jnp.stack([jnp.cos(angle_H), jnp.sin(angle_H)], axis=-1)
    unit_H2 /= jnp.max(jnp.abs(unit_H2), axis=-1, keepdims=True)
    steps_P1 = jnp.arange(1, points + 1, dtype=dtype)[:, None]
    return jnp.broadcast_to(unit_H2[:, None, None] * steps_P1, (heads, levels, points, 2))


class DeformableAttention(nn.Module):
    """y = attention(query, reference, source, sizes, seen=None) W_O + b_O (eq. 3)

    query [B, T, D]; source [B, S, D]: the pixels of all levels, see `deformable_attention`; sizes: rows and columns of each
    level, static. reference: a query's place in each level, either points [B, T, L, 2], from which the offsets are counted in
    pixels of the level, or boxes [B, T, L, 4] (centre, width, height), from whose centre they are counted in units of half the
    box divided by P. seen [B, S] bool: pixels that exist; the others count as zero.

        offsets = query W_p + b_p,   weights = softmax over levels and points of query W_a + b_a,   v = source W_v + b_v

    Initial values are those of the released code: W_p = W_a = 0, b_p the directions of the heads, W_v and W_O uniform (Glorot &
    Bengio 2010), other biases 0. y has the dtype of the computation; weights and points are in the accumulation dtype.
    """

    width: int = 256  # D
    heads: int = 8
    levels: int = 4
    points: int = 4  # of a head in each level
    dtype: Any = jnp.float32

    @nn.nowrap
    def boxed(self) -> dict:
        """{"params": tree of Parameter boxes with ShapeDtypeStruct values}; nothing is computed."""

        def init():
            x_BTD = jnp.zeros((1, self.levels, self.width), self.dtype)
            reference_BTL2 = jnp.zeros((1, self.levels, self.levels, 2), self.dtype)
            return self.init(jax.random.key(0), x_BTD, reference_BTL2, x_BTD, ((1, 1),) * self.levels)

        return metadata(jax.eval_shape(init))

    @nn.compact
    def __call__(
        self, query_BTD: jax.Array, reference_BTLP: jax.Array, source_BSD: jax.Array, sizes: Sizes,
        seen_BS: jax.Array | None = None,
    ) -> jax.Array:  # fmt: skip
        if self.width % self.heads:
            raise UserError(f"width {self.width} is not a multiple of {self.heads} heads; change one of them")
        if len(sizes) != self.levels or reference_BTLP.shape[2:] not in ((self.levels, 2), (self.levels, 4)):
            raise UserError(
                f"deformable attention with {self.levels} levels got {len(sizes)} sizes and a reference of shape "
                f"{reference_BTLP.shape}; give a size for each level and a reference [B, T, {self.levels}, 2 or 4]"
            )
        zeros, acc = nn.initializers.zeros, _time.accumulation_dtype(query_BTD, reference_BTLP)

        def project(x, shape, name, init, bias_init=zeros):
            axes = "embed", "heads", *(None,) * (len(shape) - 1)
            return Linear(shape, axes, 1, True, init, self.dtype, bias_init, name=name)(x)

        grid = self.heads, self.levels, self.points
        offsets_BTHLP2 = project(query_BTD, (*grid, 2), "offsets", zeros, directions).astype(acc)
        scores_BTHLP = project(query_BTD, grid, "weights", zeros).astype(acc)
        weights_BTHLP = jax.nn.softmax(scores_BTHLP, axis=(-2, -1))
        v_BSHV = project(source_BSD, (self.heads, self.width // self.heads), "v", xavier_uniform())
        if seen_BS is not None:
            v_BSHV = _time.select(seen_BS, v_BSHV)
        reference_BT1L1P = reference_BTLP[:, :, None, :, None].astype(acc)
        if reference_BTLP.shape[-1] == 4:
            unit = reference_BT1L1P[..., 2:] * (0.5 / self.points)
        else:
            unit = 1 / jnp.asarray([(columns, rows) for rows, columns in sizes], acc)[:, None]
        points_BTHLP2 = reference_BT1L1P[..., :2] + offsets_BTHLP2 * unit
        y_BTHV = deformable_attention(v_BSHV, sizes, points_BTHLP2, weights_BTHLP)
        init = xavier_uniform()
        return Linear((self.width,), ("heads", None, "embed"), 2, True, init, self.dtype, name="o")(y_BTHV)
