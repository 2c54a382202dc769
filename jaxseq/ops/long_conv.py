"""Long causal convolution, one filter of any length per channel (Hyena, Poli et al. 2023, arXiv:2302.10866, §2 and 3).

    y_t = sum_{j=0}^{W-1} w_j * x_{t-j} + skip * x_t,   x before the document = 0

The exact recurrence of an arbitrary filter needs the last W - 1 inputs as its state: O(W) memory and O(W) work per token. A state
of constant size needs a filter that is a sum of exponentials (`diagonal_ssm`); a trained filter can be approximated by one, with
a measured error.

State: the last W - 1 inputs, oldest first, in the inputs' dtype; sums and FFTs are in the accumulation dtype. No `summary`: the
state is a shift register, so a summary would contain the inputs themselves.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq.ops import _convolution, _time
from jaxseq.ops._example import Example, stresses


class LongConvState(NamedTuple):
    """Shift register of inputs, in their dtype."""

    x_BSD: jax.Array  # the last W - 1 inputs, oldest first; zero before the document's start


def init_state(batch: int, taps: int, width: int, dtype: DTypeLike = jnp.float32) -> LongConvState:
    """The empty state: zeros in `dtype`."""
    return LongConvState(jnp.zeros((batch, taps - 1, width), dtype))


def _prepare(x_BTD, w_WD, skip_D, state, pos):
    chex.assert_rank([x_BTD, w_WD], [3, 2])
    chex.assert_axis_dimension(w_WD, 1, x_BTD.shape[2])
    chex.assert_shape(skip_D, (x_BTD.shape[2],))
    pos_BT = _time.positions(pos, x_BTD)
    chex.assert_shape(pos_BT, x_BTD.shape[:2])
    if state is not None:
        chex.assert_shape(state.x_BSD, (x_BTD.shape[0], w_WD.shape[0] - 1, w_WD.shape[1]))
    acc = _time.accumulation_dtype(x_BTD)
    return jnp.asarray(w_WD, acc).at[0].add(skip_D.astype(acc)), pos_BT


def recurrent(
    x_BTD: jax.Array, *, w_WD: jax.Array, skip_D: jax.Array, state: LongConvState | None = None, pos: jax.Array | None = None
) -> tuple[jax.Array, LongConvState]:
    """One token after another: the register slides by one."""
    w_WD, pos_BT = _prepare(x_BTD, w_WD, skip_D, state, pos)
    state = init_state(x_BTD.shape[0], w_WD.shape[0], w_WD.shape[1], x_BTD.dtype) if state is None else state

    def step(state, x_BD):
        window_BWD = jnp.concatenate([state.x_BSD, x_BD[:, None]], axis=1)
        y_BD = jnp.einsum("bwd,wd->bd", window_BWD.astype(w_WD.dtype), w_WD[::-1])
        return LongConvState(window_BWD[:, 1:]), y_BD.astype(x_BD.dtype)

    return _time.scan_time(step, state, (x_BTD,), pos_BT)


def _register(x_BTD, state, pos_BT, slots: int) -> LongConvState:
    """The last `slots` inputs of each row's document after the call."""
    past = 0 if state is None else state.x_BSD.shape[1]
    with_state = x_BTD if state is None else jnp.concatenate([state.x_BSD, x_BTD], axis=1)
    seg_BT = jnp.pad(_time.segments(pos_BT), ((0, 0), (past, 0)))  # the state belongs to segment 0
    index_BS = past + jnp.sum(_time.valid(pos_BT), axis=1, keepdims=True) - slots + jnp.arange(slots)  # padding is a suffix
    there_BS = jnp.maximum(index_BS, 0)
    same_BS = (index_BS >= 0) & (jnp.take_along_axis(seg_BT, there_BS, axis=1) == seg_BT[:, -1:])
    return LongConvState(_time.select(same_BS, jnp.take_along_axis(with_state, there_BS[..., None], axis=1)))


def parallel(
    x_BTD: jax.Array, *, w_WD: jax.Array, skip_D: jax.Array, state: LongConvState | None = None, pos: jax.Array | None = None
) -> tuple[jax.Array, LongConvState]:
    """FFTs between parts of the row (see `_convolution`), and one FFT for the contribution of the state."""
    w_WD, pos_BT = _prepare(x_BTD, w_WD, skip_D, state, pos)
    (taps, width), time = w_WD.shape, x_BTD.shape[1]
    if time == 0:
        return x_BTD, init_state(x_BTD.shape[0], taps, width, x_BTD.dtype) if state is None else state
    (x_BTD,) = _time.clean(pos_BT, x_BTD)
    seg_BT = _time.segments(pos_BT)
    y_BTD = _convolution.causal(x_BTD.astype(w_WD.dtype), w_WD, seg_BT)
    if state is not None:
        y_BTD += _time.select(seg_BT == 0, _convolution.across(state.x_BSD.astype(w_WD.dtype), w_WD, time))
    y_BTD = _time.select(_time.valid(pos_BT), y_BTD).astype(x_BTD.dtype)
    return y_BTD, _register(x_BTD, state, pos_BT, taps - 1)


def chunkwise(
    x_BTD: jax.Array, *, w_WD: jax.Array, skip_D: jax.Array, state: LongConvState | None = None, pos: jax.Array | None = None,
    chunk: int = 1024,
) -> tuple[jax.Array, LongConvState]:  # fmt: skip
    """Each chunk of `chunk` tokens, with the W - 1 inputs before it, is convolved with the filter.

    Work is O(T / C * (W + C) log(W + C)), and W - 1 inputs per chunk are stored for the backward pass: use chunks about as long
    as the filter. If T <= chunk this is `parallel`.
    """
    _, pos_BT = _prepare(x_BTD, w_WD, skip_D, state, pos)
    if x_BTD.shape[1] <= chunk:
        return parallel(x_BTD, w_WD=w_WD, skip_D=skip_D, state=state, pos=pos)

    def form(x_BCD, *, state, pos):
        return parallel(x_BCD, w_WD=w_WD, skip_D=skip_D, state=state, pos=pos)

    state = init_state(x_BTD.shape[0], w_WD.shape[0], w_WD.shape[1], x_BTD.dtype) if state is None else state
    return _time.scan_chunks(form, state, (x_BTD,), pos_BT, chunk)


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}
CUT = "overlap"


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`."""
    key_x, key_w, key_skip, key_prefix = jax.random.split(key, 4)
    taps, width = 21, 5
    weights: dict[str, Any] = {"w_WD": jax.random.normal(key_w, (taps, width), dtype)}
    weights["skip_D"] = jax.random.normal(key_skip, (width,), dtype)
    state = recurrent(jax.random.normal(key_prefix, (batch, taps, width), dtype), **weights)[1]
    return Example((jax.random.normal(key_x, (batch, time, width), dtype),), weights, {}, state)


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """The log-decays of `stresses` are used as logarithms of the taps."""
    base = example(key, batch, time, dtype)
    w_WD = base.weights["w_WD"]
    return stresses(key, base, w_WD.shape, lambda log_WD: base._replace(weights=base.weights | {"w_WD": jnp.exp(log_WD)}))
