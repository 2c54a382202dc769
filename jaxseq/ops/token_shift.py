"""Token shift: the output at t is the input at t - 1 (RWKV, Peng et al. 2023, arXiv:2305.13048, §3.1).

    y_t = x_{t-1},   y_0 = 0 or the carried input

State: the last input that is not padding, in the inputs' dtype. There is no arithmetic: all forms are bitwise equal.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq.ops import _time
from jaxseq.ops._example import Example, stresses


class TokenShiftState(NamedTuple):
    """The previous input, in its dtype."""

    x_BD: jax.Array  # the last input of the document


def init_state(batch: int, width: int, dtype: DTypeLike = jnp.float32) -> TokenShiftState:
    """The empty state: zeros in `dtype`."""
    return TokenShiftState(jnp.zeros((batch, width), dtype))


def _prepare(x_BTD, state, pos):
    chex.assert_rank(x_BTD, 3)
    pos_BT = _time.positions(pos, x_BTD)
    chex.assert_shape(pos_BT, x_BTD.shape[:2])
    if state is None:
        state = init_state(x_BTD.shape[0], x_BTD.shape[2], x_BTD.dtype)
    chex.assert_shape(state.x_BD, (x_BTD.shape[0], x_BTD.shape[2]))
    return pos_BT, state


def recurrent(
    x_BTD: jax.Array, *, state: TokenShiftState | None = None, pos: jax.Array | None = None
) -> tuple[jax.Array, TokenShiftState]:
    """One token after another: y_t = state, state = x_t."""
    pos_BT, state = _prepare(x_BTD, state, pos)
    return _time.scan_time(lambda state, x_BD: (TokenShiftState(x_BD), state.x_BD), state, (x_BTD,), pos_BT)


def parallel(
    x_BTD: jax.Array, *, state: TokenShiftState | None = None, pos: jax.Array | None = None
) -> tuple[jax.Array, TokenShiftState]:
    """The whole sequence shifted by one, with the state in front."""
    pos_BT, state = _prepare(x_BTD, state, pos)
    if x_BTD.shape[1] == 0:
        return x_BTD, state
    (x_BTD,) = _time.clean(pos_BT, x_BTD)
    with_state = jnp.concatenate([state.x_BD[:, None], x_BTD], axis=1)
    y_BTD = _time.select(pos_BT > _time.START, with_state[:, :-1])
    last_B = jnp.sum(_time.valid(pos_BT), axis=1)  # padding is a suffix: with the state in front, the last token has this index
    return y_BTD, TokenShiftState(jnp.take_along_axis(with_state, last_B[:, None, None], axis=1)[:, 0])


def chunkwise(
    x_BTD: jax.Array, *, state: TokenShiftState | None = None, pos: jax.Array | None = None, chunk: int = 256
) -> tuple[jax.Array, TokenShiftState]:
    """Chunks of `chunk` tokens. Only for completeness: it has no advantage over `parallel`."""
    pos_BT, state = _prepare(x_BTD, state, pos)
    if x_BTD.shape[1] == 0:
        return x_BTD, state
    return _time.scan_chunks(parallel, state, (x_BTD,), pos_BT, chunk)


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}
CUT = "halo"


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`."""
    key_x, key_prefix = jax.random.split(key)
    state = recurrent(jax.random.normal(key_prefix, (batch, 3, 5), dtype))[1]
    return Example((jax.random.normal(key_x, (batch, time, 5), dtype),), {}, {}, state)


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """The op has no decay: the log-decays of `stresses` become inputs near 1, near 0, and both."""
    base = example(key, batch, time, dtype)
    return stresses(key, base, base.xs[0].shape, lambda log_BTD: base._replace(xs=(jnp.exp(log_BTD),)))
