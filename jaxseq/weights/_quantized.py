"""Weights in 8 and 4 bits, and products of 8-bit weights with 8-bit activations."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.errors import UserError
from jaxseq.weights._base import Weight, box_like, product, weight, whole

GROUP = 64  # largest number of inputs that share a scale in four bits (Dettmers et al. 2023, arXiv:2305.14314, §3)

# The 4-bit NormalFloat: quantiles of N(0, 1) scaled to [-1, 1], with an exact zero (arXiv:2305.14314, appendix E).
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


class Code(NamedTuple):
    """A kind of quantization. `round` maps numbers in [-top, top] to codes, `value` codes to numbers."""

    bits: int
    top: float
    dtype: Any
    round: Callable[[jax.Array], jax.Array]
    value: Callable[[jax.Array], jax.Array]
    activations: bool = False  # the activations that a matrix multiplies are rounded to int8 too


def _rounded(x: jax.Array, largest: int) -> jax.Array:
    return jnp.clip(jnp.round(x), -largest - 1, largest)


def _nearest(x: jax.Array) -> jax.Array:
    middle = (jnp.asarray(NF4[1:]) + jnp.asarray(NF4[:-1])) / 2
    return jnp.searchsorted(middle, x).astype(jnp.uint8)


_INT8 = Code(8, 127.5, jnp.int8, lambda x: _rounded(x, 127).astype(jnp.int8), lambda c: c.astype(jnp.float32))
CODES = {
    "int8": _INT8,
    "w8a8": _INT8._replace(activations=True),
    "fp8": Code(
        8, 448, jnp.uint8,
        lambda x: jax.lax.bitcast_convert_type(x.astype(jnp.float8_e4m3fn), jnp.uint8),
        lambda c: jax.lax.bitcast_convert_type(c, jnp.float8_e4m3fn).astype(jnp.float32),
    ),
    "int4": Code(4, 7.5, jnp.uint8, lambda x: (_rounded(x, 7) + 8).astype(jnp.uint8), lambda c: c.astype(jnp.float32) - 8),
    "nf4": Code(4, 1, jnp.uint8, _nearest, lambda c: jnp.asarray(NF4, jnp.float32)[c]),
}  # fmt: skip


@weight("kind", "axis")
class QuantizedWeight(Weight):
    """w = scale * value(codes): symmetric, so zeros stay zeros. 8 bits: one scale per output. 4 bits: one per group of at most
    GROUP inputs along `axis`, the last contracted axis, with two codes per byte along it, the first in the low bits."""

    codes: jax.Array
    scale: jax.Array  # float32, with the axes of w; an axis along which it is shared has size 1 or the number of groups
    kind: str
    axis: int  # counted from the end

    @classmethod
    def of(cls, w: jax.Array, kind: str, contracts: tuple[int, ...]) -> "QuantizedWeight":
        """Quantizes w. contracts: its contracted axes, counted from the end. Where all weights are zero, the scale is 1."""
        code, axis = CODES[kind], max(contracts)
        shape = _scale_shape(w.shape, kind, contracts)
        tiles = [part for size, count in zip(w.shape, shape, strict=True) for part in (count, size // count)]
        largest = jnp.max(jnp.abs(w.reshape(tiles)), axis=tuple(range(1, len(tiles), 2)))
        scale = jnp.where(largest > 0, largest / code.top, 1).astype(jnp.float32)
        codes = code.round(w / _spread(scale, w.shape))
        return cls(_pack(codes, axis) if code.bits == 4 else codes, scale, kind, axis)

    @classmethod
    def boxes(cls, box: Any, argument: str, kind: str) -> "QuantizedWeight":
        """The boxes of a quantized parameter's fields, as in `model.boxed()`. Raises UserError if `fits` is false."""
        axis, shape = max(box.contracts), list(box.value.shape)
        if not fits(box, kind):
            raise UserError(f"{kind} packs two weights into a byte, but a matrix has {shape[axis]} inputs; leave it out")
        scale = _scale_shape(tuple(shape), kind, box.contracts)
        shape[axis] //= 2 if CODES[kind].bits == 4 else 1
        names = tuple(n if size > 1 else None for n, size in zip(box.names, scale, strict=True))
        return cls(box_like(box, shape, box.names, CODES[kind].dtype), box_like(box, scale, names), kind, axis)

    def dense(self) -> jax.Array:
        code = CODES[self.kind]
        values = code.value(_unpack(self.codes, self.axis) if code.bits == 4 else self.codes)
        return values * _spread(self.scale, values.shape)

    def contract(self, x: jax.Array, inputs: int) -> jax.Array:
        if CODES[self.kind].bits == 4:
            return super().contract(x, inputs)
        scale = self.scale.reshape(self.scale.shape[inputs:])
        if CODES[self.kind].activations:
            return _int8_product(x, self.codes, scale, inputs)
        y = product(x, CODES[self.kind].value(self.codes), inputs)
        return y * scale.astype(y.dtype)

    def rows(self, ids: jax.Array) -> jax.Array:
        return dataclasses.replace(self, codes=self.codes[ids], scale=self.scale[ids]).dense()


def _scale_shape(shape: tuple[int, ...], kind: str, contracts: tuple[int, ...]) -> tuple[int, ...]:
    axes, last = {axis % len(shape) for axis in contracts}, max(contracts) % len(shape)
    if CODES[kind].bits == 8:
        return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return tuple(size // group(size) if axis == last else size for axis, size in enumerate(shape))


def fits(box: Any, kind: str) -> bool:
    """Whether a parameter can have this kind: 4 bits need an even number of inputs."""
    return CODES[kind].bits == 8 or group(box.value.shape[max(box.contracts)]) > 0


def group(size: int) -> int:
    """The largest even divisor of `size` up to GROUP; 0 if there is none."""
    return max((g for g in range(2, min(size, GROUP) + 1, 2) if size % g == 0), default=0)


def _spread(scale: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The scale of each element of an array of this shape."""
    for axis, (count, size) in enumerate(zip(scale.shape, shape, strict=True)):
        scale = jnp.repeat(scale, size // count, axis) if 1 < count < size else scale
    return scale


def _pack(codes: jax.Array, axis: int) -> jax.Array:
    low, high = (jax.lax.slice_in_dim(codes, first, None, 2, axis % codes.ndim) for first in (0, 1))
    return low | (high << 4)


def _unpack(codes: jax.Array, axis: int) -> jax.Array:
    axis = axis % codes.ndim
    shape = (*codes.shape[:axis], 2 * codes.shape[axis], *codes.shape[axis + 1 :])
    return jnp.stack([codes & 15, codes >> 4], axis=axis + 1).reshape(shape)


def int8_rows(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """(codes int8, scale float32) with x ≈ scale * codes and scale = max|x| / 127 over these axes, which have size 1 in it.
    Where all numbers are zero, the scale is 1."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True)
    scale = jnp.where(largest > 0, largest / 127, 1).astype(jnp.float32)
    return jnp.round(x / scale).astype(jnp.int8), scale


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _int8_product(x: jax.Array, codes: jax.Array, scale: jax.Array, inputs: int) -> jax.Array:
    """scale_x (codes_x codes) scale in the dtype of x; x is rounded per token, and the product is one of integers (as LLM.int8,
    Dettmers et al. 2022, arXiv:2208.07339, §2.1, without its outliers). The gradient is that without rounding of x."""
    own, scale_x = int8_rows(x, tuple(range(-inputs, 0)))
    axes = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
    y = jax.lax.dot_general(own, codes, (axes, ((), ())), preferred_element_type=jnp.int32)
    scale_x = scale_x.reshape(*x.shape[: x.ndim - inputs], *(1,) * scale.ndim)
    return (y.astype(jnp.float32) * scale_x * scale).astype(x.dtype)


def _int8_forward(x, codes, scale, inputs):
    return _int8_product(x, codes, scale, inputs), (x, codes, scale)


def _int8_backward(inputs, saved, dy):
    x, codes, scale = saved
    _, pull = jax.vjp(lambda x, scale: product(x, codes, inputs) * scale.astype(x.dtype), x, scale)
    dx, dscale = pull(dy)
    return dx, np.zeros(codes.shape, jax.dtypes.float0), dscale


_int8_product.defvjp(_int8_forward, _int8_backward)


@weight("kind", "contracts")
class Rounded(Weight):
    """w, quantized in the forward pass: w + stop_gradient(quantized(w) - w), the straight-through estimator
    (Bengio et al. 2013, arXiv:1308.3432, §4)."""

    trained = ("w",)
    w: Any  # an array or a Weight
    kind: str
    contracts: tuple[int, ...]

    def dense(self) -> jax.Array:
        w = whole(self.w)
        return w + jax.lax.stop_gradient(QuantizedWeight.of(w, self.kind, self.contracts).dense() - w)

    def contract(self, x: jax.Array, inputs: int) -> jax.Array:
        if CODES[self.kind].activations:
            codes, scale = int8_rows(x, tuple(range(-inputs, 0)))
            x = x + jax.lax.stop_gradient((scale * codes).astype(x.dtype) - x)
        return super().contract(x, inputs)
