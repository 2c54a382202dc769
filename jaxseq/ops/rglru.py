"""The linear recurrence of the RG-LRU (De et al. 2024, arXiv:2402.19427, §2.4, eq. 4), with a decay per channel and token.

    h_t = a_t h_{t-1} + x_t,   y_t = h_t

`log_a_BTD <= 0` is log a_t and depends on the data. The mixer applies the input gate and the multiplier sqrt(1 - a_t^2) to x;
the multiplier is 1 at the first token of a document. In this op a document start only resets the state.

State: h [B, D] in the accumulation dtype, in which everything is computed.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq.ops import _linear
from jaxseq.ops._example import Example, stresses
from jaxseq.ops._linear import LinearState, Summary, apply, combine, init_state

__all__ = ["FORMS", "LinearState", "Summary", "apply", "combine", "example", "init_state", "stress", "summary"]


def _affine(x_BTD, log_a_BTD):
    return jnp.exp(log_a_BTD), x_BTD


def recurrent(
    x_BTD: jax.Array, log_a_BTD: jax.Array, *, state: LinearState | None = None, pos: jax.Array | None = None
) -> tuple[jax.Array, LinearState]:
    """One token after another."""
    return _linear.recurrent(_affine, x_BTD, log_a_BTD, state, pos)


def parallel(
    x_BTD: jax.Array, log_a_BTD: jax.Array, *, state: LinearState | None = None, pos: jax.Array | None = None
) -> tuple[jax.Array, LinearState]:
    """An associative scan over time."""
    return _linear.parallel(_affine, x_BTD, log_a_BTD, state, pos)


def chunkwise(
    x_BTD: jax.Array, log_a_BTD: jax.Array, *, state: LinearState | None = None, pos: jax.Array | None = None, chunk: int = 256
) -> tuple[jax.Array, LinearState]:
    """An associative scan inside each chunk; the state is carried between chunks."""
    return _linear.chunkwise(_affine, x_BTD, log_a_BTD, state, pos, chunk)


def summary(x_BTD: jax.Array, log_a_BTD: jax.Array, *, pos: jax.Array | None = None) -> Summary:
    """Product of the decays, and the state after the segment starting from zero. T >= 1."""
    return _linear.summary(_affine, x_BTD, log_a_BTD, pos)


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}
CUT = "affine"


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`."""
    def inputs(key, time):
        keys = jax.random.split(key)
        x_BTD = jax.random.normal(keys[0], (batch, time, 5), dtype)
        return x_BTD, -jax.nn.softplus(jax.random.normal(keys[1], (batch, time, 5), dtype) - 2)

    key_x, key_prefix = jax.random.split(key)
    return Example(inputs(key_x, time), {}, {}, recurrent(*inputs(key_prefix, 32))[1])


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """The hard inputs by name, see `jaxseq.ops.stresses`."""
    base = example(key, batch, time, dtype)
    x_BTD, log_a_BTD = base.xs
    return stresses(key, base, log_a_BTD.shape, lambda log_a_BTD: base._replace(xs=(x_BTD, log_a_BTD)))
