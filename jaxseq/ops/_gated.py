"""Gates, and the input checks and examples shared by LSTM and GRU.

u_BTHPK = W_x x for each of P gates, recurrent matrices w_HKPJ, biases b_HPK. Heads are independent.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq.ops import _time
from jaxseq.ops._example import Example, gates, stresses


@jax.custom_jvp
def sigmoids(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sigmoid(x), 1 - sigmoid(x)), with values and derivatives accurate to relative rounding error.

    Computing 1 - sigmoid(x) by subtraction cancels for large x, and so does the gradient of a gate close to 1.
    """
    return jax.nn.sigmoid(x), jax.nn.sigmoid(-x)


@sigmoids.defjvp
def _(primals, tangents):
    up, down = sigmoids(*primals)
    slope = up * down * tangents[0]
    return (up, down), (slope, -slope)


def preparation(names: tuple[str, ...], init_state: Callable) -> Callable:
    """The `prepare` of `_newton.Op` for an op with the gates `names`."""

    def prepare(u_BTHPK, *, w_HKPJ, b_HPK, state=None, pos=None):
        """(u,), (w, b), initial state stacked to [B, H, K, N], pos_BT; in the accumulation dtype, u zero at padding."""
        chex.assert_rank([u_BTHPK, w_HKPJ], [5, 4])
        batch, time, heads, parts, size = u_BTHPK.shape
        chex.assert_equal(parts, len(names))
        chex.assert_shape(w_HKPJ, (heads, size, parts, size))
        chex.assert_shape(b_HPK, (heads, parts, size))
        pos_BT = _time.positions(pos, u_BTHPK)
        chex.assert_shape(pos_BT, (batch, time))
        acc = _time.accumulation_dtype(u_BTHPK)
        state = init_state(batch, heads, size, acc) if state is None else state
        chex.assert_shape(list(state), (batch, heads, size))
        (u_BTHPK,) = _time.clean(pos_BT, u_BTHPK)
        return (u_BTHPK.astype(acc),), (w_HKPJ.astype(acc), b_HPK.astype(acc)), jnp.stack(state, axis=-1), pos_BT

    return prepare


def example(recurrent: Callable, count: int, key: jax.Array, batch: int, time: int, dtype: DTypeLike) -> Example:
    """Inputs with a memory of about ten tokens: the second gate, which keeps the state, has bias 2."""
    heads, size = 2, 4

    def inputs(key, time):
        return jax.random.normal(key, (batch, time, heads, count, size), dtype)

    keys = jax.random.split(key, 4)
    b_HPK = 0.1 * jax.random.normal(keys[1], (heads, count, size), dtype)
    weights = {"w_HKPJ": 0.5 * jax.random.normal(keys[0], (heads, size, count, size), dtype), "b_HPK": b_HPK.at[:, 1].add(2)}
    state = recurrent(inputs(keys[2], 32), **weights)[1]
    return Example((inputs(keys[3], time),), weights, {}, state)


def stress(base: Example, key: jax.Array) -> dict[str, Example]:
    """The decays set the second gate, which keeps the state; "large" doubles the weights."""
    (u_BTHPK,) = base.xs
    large = base._replace(weights=jax.tree.map(lambda w: 2 * w, base.weights))

    def decayed(log_BTHK):
        return base._replace(xs=(u_BTHPK.at[:, :, :, 1].set(gates(log_BTHK)),))

    return stresses(key, base, u_BTHPK[:, :, :, 1].shape, decayed, large=large)
