"""Short causal depthwise convolution (the width-4 convolution of Mamba, Gu & Dao 2023, arXiv:2312.00752, §3.4).

    y_t = bias + sum_{j=0}^{W-1} w_j * x_{t-j},   x before the document = 0

`w_WD[j]` is the tap for the input j steps ago (torch's Conv1d stores the taps in reverse order). Computed as W shifted
multiply-adds, because the gradient of a grouped convolution is slow on every XLA backend. State: the last W-1 inputs, oldest
first, before bias and activation, in the inputs' dtype; products are summed in the accumulation dtype.

No `summary`: the state is a shift register, so a summary would contain the inputs themselves.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq.ops import _time
from jaxseq.ops._example import Example, stresses


class ShortConvState(NamedTuple):
    """Shift register of inputs, in their dtype."""

    x_BWD: jax.Array  # the last W-1 inputs, oldest first; zero before the document's start


def init_state(batch: int, taps: int, width: int, dtype: DTypeLike = jnp.float32) -> ShortConvState:
    """The empty state: zeros in `dtype`."""
    return ShortConvState(jnp.zeros((batch, taps - 1, width), dtype))


def _prepare(x_BTD, w_WD, bias_D, state, pos):
    chex.assert_rank([x_BTD, w_WD], [3, 2])
    taps, width = w_WD.shape
    chex.assert_axis_dimension(x_BTD, 2, width)
    if bias_D is None:
        bias_D = jnp.zeros((width,), w_WD.dtype)
    chex.assert_shape(bias_D, (width,))
    pos_BT = _time.positions(pos, x_BTD)
    chex.assert_shape(pos_BT, x_BTD.shape[:2])
    if state is None:
        state = init_state(x_BTD.shape[0], taps, width, x_BTD.dtype)
    chex.assert_shape(state.x_BWD, (x_BTD.shape[0], taps - 1, width))
    acc = _time.accumulation_dtype(x_BTD)
    return w_WD.astype(acc), bias_D.astype(acc), pos_BT, state


def recurrent(
    x_BTD: jax.Array, *, w_WD: jax.Array, bias_D: jax.Array | None = None, state: ShortConvState | None = None,
    pos: jax.Array | None = None,
) -> tuple[jax.Array, ShortConvState]:  # fmt: skip
    """One token after another: the window slides by one."""
    w_WD, bias_D, pos_BT, state = _prepare(x_BTD, w_WD, bias_D, state, pos)

    def step(state, x_BD):
        window_BWD = jnp.concatenate([state.x_BWD, x_BD[:, None]], axis=1)
        y_BD = jnp.einsum("bwd,wd->bd", window_BWD.astype(w_WD.dtype), w_WD[::-1]) + bias_D
        return ShortConvState(window_BWD[:, 1:]), y_BD.astype(x_BD.dtype)

    return _time.scan_time(step, state, (x_BTD,), pos_BT)


def parallel(
    x_BTD: jax.Array, *, w_WD: jax.Array, bias_D: jax.Array | None = None, state: ShortConvState | None = None,
    pos: jax.Array | None = None,
) -> tuple[jax.Array, ShortConvState]:  # fmt: skip
    """W shifted copies of the sequence; taps that reach into another document are masked."""
    w_WD, bias_D, pos_BT, state = _prepare(x_BTD, w_WD, bias_D, state, pos)
    time, past = x_BTD.shape[1], w_WD.shape[0] - 1
    if time == 0:
        return x_BTD, state
    (x_BTD,) = _time.clean(pos_BT, x_BTD)
    seg_BT = jnp.pad(_time.segments(pos_BT), ((0, 0), (past, 0)))  # the state belongs to segment 0
    x_BTD = jnp.concatenate([state.x_BWD, x_BTD], axis=1)
    y_BTD = bias_D
    for j in range(past + 1):
        reach = slice(past - j, past - j + time)
        y_BTD += w_WD[j] * _time.select(seg_BT[:, reach] == seg_BT[:, past:], x_BTD[:, reach])
    y_BTD = _time.select(_time.valid(pos_BT), y_BTD)

    last_B1 = jnp.sum(_time.valid(pos_BT), axis=1, keepdims=True)  # padding is a suffix
    window_BW = last_B1 + jnp.arange(past)
    kept_BWD = jnp.take_along_axis(x_BTD, window_BW[..., None], axis=1)
    same_BW = jnp.take_along_axis(seg_BT, window_BW, axis=1) == seg_BT[:, -1:]
    return y_BTD.astype(x_BTD.dtype), ShortConvState(_time.select(same_BW, kept_BWD))


def chunkwise(
    x_BTD: jax.Array, *, w_WD: jax.Array, bias_D: jax.Array | None = None, state: ShortConvState | None = None,
    pos: jax.Array | None = None, chunk: int = 256,
) -> tuple[jax.Array, ShortConvState]:  # fmt: skip
    """`parallel` on chunks of `chunk` tokens, which bounds the working set; memory is linear in T in every form."""
    _, _, pos_BT, state = _prepare(x_BTD, w_WD, bias_D, state, pos)
    if x_BTD.shape[1] == 0:
        return x_BTD, state

    def form(x_BCD, *, state, pos):
        return parallel(x_BCD, w_WD=w_WD, bias_D=bias_D, state=state, pos=pos)

    return _time.scan_chunks(form, state, (x_BTD,), pos_BT, chunk)


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}
CUT = "halo"


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`."""
    key_x, key_w, key_b, key_prefix = jax.random.split(key, 4)
    weights: dict[str, Any] = {"w_WD": jax.random.normal(key_w, (4, 5), dtype)}
    weights["bias_D"] = 0.1 * jax.random.normal(key_b, (5,), dtype)
    state = recurrent(jax.random.normal(key_prefix, (batch, 6, 5), dtype), **weights)[1]
    return Example((jax.random.normal(key_x, (batch, time, 5), dtype),), weights, {}, state)


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """The log-decays of `stresses` are used as logarithms of the taps."""
    base = example(key, batch, time, dtype)
    w_WD = base.weights["w_WD"]
    return stresses(key, base, w_WD.shape, lambda log_WD: base._replace(weights=base.weights | {"w_WD": jnp.exp(log_WD)}))
