"""Sparse weights, low-rank weights, and weights with a low-rank adapter."""

from typing import Any

import jax

from jaxseq.weights._base import Weight, box_like, contract, dense, is_weight, leading, norms, weight, whole


@weight()
class Sparse(Weight):
    """w with fixed zeros: they have no gradient, so the optimisers here do not change them."""

    trained = ("w",)
    w: Any  # an array or a Weight

    @classmethod
    def boxes(cls, box: Any, argument: str) -> "Sparse":
        return cls(box)

    def dense(self) -> jax.Array:
        w = whole(self.w)
        return w * (w != 0)

    def contract(self, x: jax.Array, inputs: int) -> jax.Array:
        if is_weight(self.w):  # quantized, so it is not trained and needs no mask
            return contract(x, self.w, inputs)
        return super().contract(x, inputs)


@weight("inputs")
class Factored(Weight):
    """w = a b, of rank R: a [*leading, *inputs, R], b [*leading, R, *outputs]."""

    trained = ("a", "b")
    a: Any
    b: Any
    inputs: int  # number of contracted axes

    @classmethod
    def boxes(cls, box: Any, argument: str) -> "Factored":
        a, b = factors(box, int(argument))
        return cls(a, b, len(box.contracts))

    def dense(self) -> jax.Array:
        return _multiplied(whole(self.a), whole(self.b), self.inputs)

    def contract(self, x: jax.Array, inputs: int) -> jax.Array:
        return contract(contract(x, self.a, inputs), self.b)


def _multiplied(a: jax.Array, b: jax.Array, inputs: int) -> jax.Array:
    """a b for each index of the leading axes."""
    leading = a.ndim - inputs - 1
    rank, shape = a.shape[-1], (*a.shape[:-1], *b.shape[leading + 1 :])
    return (a.reshape(*a.shape[:leading], -1, rank) @ b.reshape(*b.shape[:leading], rank, -1)).reshape(shape)


def factors(box: Any, rank: int) -> tuple[Any, Any]:
    """Boxes of the factors a and b of a parameter, as in `Factored`."""
    leads, inputs = leading(box), len(box.contracts)
    shape, names = box.value.shape, box.names
    first, last = slice(0, leads + inputs), slice(leads + inputs, None)
    outputs = len(shape[last])
    a = box_like(box, (*shape[first], rank), (*names[first], None), contracts=tuple(range(-inputs - 1, -1)))
    b_shape, b_names = (*shape[:leads], rank, *shape[last]), (*names[:leads], None, *names[last])
    return a, box_like(box, b_shape, b_names, contracts=(-outputs - 1,))


@weight("inputs", "scale")
class Adapted(Weight):
    """A frozen weight plus a trained low-rank matrix: w = base + scale a b (LoRA, Hu et al. 2021, arXiv:2106.09685, §4.1).

    With a magnitude m: w = m (base + scale a b) / |base + scale a b|, |…| the norm over the inputs of each output without a
    gradient (DoRA, Liu et al. 2024, arXiv:2402.09353, eq. 5 and 11). The fixed zeros of a Sparse base stay zero.
    """

    trained = ("a", "b", "magnitude")
    base: Any
    a: Any
    b: Any
    magnitude: jax.Array | None  # [*leading, 1 …, *outputs]
    inputs: int
    scale: float

    def dense(self) -> jax.Array:
        a, b = whole(self.a), whole(self.b)
        base = dense(self.base, a.dtype)
        w = base + self.scale * _multiplied(a, b, self.inputs)
        w = w * (base != 0) if isinstance(self.base, Sparse) else w
        if self.magnitude is None:
            return w
        return w * (self.magnitude / jax.lax.stop_gradient(norms(w, self.inputs, a.ndim - self.inputs - 1)))

    def contract(self, x: jax.Array, inputs: int) -> jax.Array:
        if self.magnitude is not None or isinstance(self.base, Sparse):
            return super().contract(x, inputs)
        change = contract(contract(x, self.a, inputs), self.b)
        return contract(x, self.base, inputs) + self.scale * change
