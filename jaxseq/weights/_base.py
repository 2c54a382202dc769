"""The base class of weights, and products with arrays or weights."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

LEADING = ("layers", "expert")  # leading axes, along which matrices are stacked


class Weight:
    """Base class of pytrees that stand for an array. A subclass is a dataclass that defines `dense`."""

    trained: ClassVar[tuple[str, ...]] = ()  # fields that training changes
    static: ClassVar[tuple[str, ...]] = ()  # fields that are not arrays, set by the decorator `weight`

    def dense(self) -> jax.Array:
        """The array that this stands for."""
        raise NotImplementedError

    def contract(self, x: jax.Array, inputs: int) -> jax.Array:
        return product(x, self.dense(), inputs)

    def rows(self, ids: jax.Array) -> jax.Array:
        """`dense()[ids]`."""
        return self.dense()[ids]


def contract(x: jax.Array, w: Any, inputs: int = 1) -> jax.Array:
    """x W over the last `inputs` axes of x and the first of W, in the dtype of x."""
    return w.contract(x, inputs) if isinstance(w, Weight) else product(x, w, inputs)


def dense(w: Any, dtype: Any) -> jax.Array:
    """The array that a weight stands for."""
    return (w.dense() if isinstance(w, Weight) else w).astype(dtype)


def whole(part: Any) -> jax.Array:
    """A field of a weight as an array: in its own dtype, or in float32 if it is a Weight itself."""
    return dense(part, jnp.float32) if isinstance(part, Weight) else part


def product(x: jax.Array, w: jax.Array, inputs: int) -> jax.Array:
    """x W over the last `inputs` axes of x and the first of W, in the dtype of x."""
    return _product(x, w.astype(x.dtype), inputs)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, w: jax.Array, inputs: int) -> jax.Array:
    return _dot(x, w, range(x.ndim - inputs, x.ndim), range(inputs))


def _dot(a: jax.Array, b: jax.Array, axes_a: Sequence[int], axes_b: Sequence[int]) -> jax.Array:
    return jax.lax.dot_general(a, b, ((tuple(axes_a), tuple(axes_b)), ((), ())))


def _product_forward(x, w, inputs: int):
    return _product(x, w, inputs), (x, w)


def _product_backward(inputs: int, saved, dy):
    """JAX would compute dW as dy^T x, for which XLA copies all of dy transposed on CPU. Here the narrower operand is transposed;
    the products are the same. The barrier keeps XLA from moving the transposition of the small result to the operands."""
    x, w = saved
    rows = range(x.ndim - inputs)
    dx = _dot(dy, w, range(len(rows), dy.ndim), range(inputs, w.ndim))
    if math.prod(w.shape[:inputs]) <= math.prod(w.shape[inputs:]):
        return dx, _dot(x, dy, rows, rows)
    outputs = w.ndim - inputs
    dw = jax.lax.optimization_barrier(_dot(dy, x, rows, rows))
    return dx, jnp.moveaxis(dw, range(outputs), range(inputs, w.ndim))


_product.defvjp(_product_forward, _product_backward)


def weight(*static: str) -> Callable[[type], type]:
    """Decorator: a frozen dataclass that is a pytree; the fields named are static."""

    def decorate(cls: type) -> type:
        cls = dataclasses.dataclass(frozen=True)(cls)
        cls.static = static
        names = [field.name for field in dataclasses.fields(cls)]
        return jax.tree_util.register_dataclass(cls, [n for n in names if n not in static], list(static))

    return decorate


def box_like(box: Any, shape: Any, names: tuple, dtype: Any = None, contracts: tuple[int, ...] = ()) -> Any:
    value = jax.ShapeDtypeStruct(tuple(shape), dtype or jnp.float32)
    return box.replace(value=value, names=tuple(names), contracts=contracts)


def leading(box: Any) -> int:
    """Number of leading axes of a parameter, along which matrices are stacked."""
    return next((i for i, name in enumerate(box.names) if name not in LEADING), len(box.names))


def is_weight(node: Any) -> bool:
    return isinstance(node, Weight)


def norms(w: jax.Array, inputs: int, leads: int) -> jax.Array:
    """The norm of each output's weights, with contracted axes of size 1. A norm of zero is replaced by a tiny number."""
    axes = tuple(range(leads, leads + inputs))
    return jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(w), axis=axes, keepdims=True), jnp.finfo(w.dtype).tiny))


def matrices(box: Any, x: jax.Array) -> jax.Array:
    """A kernel, or an array with its axes, as matrices [N, inputs, outputs]."""
    leads, inputs = leading(box), len(box.contracts)
    first = math.prod(x.shape[:leads])
    return x.reshape(first, math.prod(x.shape[leads : leads + inputs]), -1)
