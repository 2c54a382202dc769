"""The selective scan of Mamba (Gu & Dao 2023, arXiv:2312.00752, §3.2 and algorithm 2).

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t          h [D, N]
    y_t = C_t h_t + D x_t

A is discretised by zero-order hold and B by Euler's rule, as in the released code; eq. 4 of the paper has zero-order hold for
both. `dt_BTD > 0` is the step size after bias and softplus; `a_DN < 0`. State: h_BDN in the accumulation dtype, in which
everything is computed. Only `parallel` materialises an array [B, T, D, N].
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq.ops import _time
from jaxseq.ops._example import Example, stresses


class SelectiveScanState(NamedTuple):
    """State h [B, D, N], in the accumulation dtype."""

    h_BDN: jax.Array


class Summary(NamedTuple):
    """Effect of a segment on the incoming state: h -> A h + h'."""

    A_BDN: jax.Array  # product of the decays; 0 if a document starts in the segment
    h_BDN: jax.Array  # h': the state after the segment, starting from zero


def init_state(batch: int, width: int, state_size: int, dtype: DTypeLike = jnp.float32) -> SelectiveScanState:
    """The empty state, in the accumulation dtype for inputs of `dtype`."""
    return SelectiveScanState(jnp.zeros((batch, width, state_size), _time.accumulation_dtype(jnp.zeros((), dtype))))


def _prepare(x_BTD, dt_BTD, b_BTN, c_BTN, a_DN, d_D, state, pos):
    chex.assert_rank([x_BTD, dt_BTD, b_BTN, c_BTN], 3)
    chex.assert_equal_shape([x_BTD, dt_BTD])
    chex.assert_equal_shape([b_BTN, c_BTN])
    chex.assert_shape(a_DN, (x_BTD.shape[2], b_BTN.shape[2]))
    chex.assert_shape(d_D, (x_BTD.shape[2],))
    pos_BT = _time.positions(pos, x_BTD)
    chex.assert_shape(pos_BT, x_BTD.shape[:2])
    acc = _time.accumulation_dtype(x_BTD, dt_BTD)
    if state is None:
        state = init_state(x_BTD.shape[0], a_DN.shape[0], a_DN.shape[1], acc)
    chex.assert_shape(state.h_BDN, (x_BTD.shape[0], *a_DN.shape))
    return acc, pos_BT, state


def _decays(dt_BD, keep_B, a_ND):
    """[B, N, D]: the decays of one token in each row, 0 at the start of a document; B may be several axes."""
    return keep_B[..., None, None] * jnp.exp(dt_BD[..., None, :] * a_ND)


@jax.custom_vjp
def _steps(u_CBD, dt_CBD, b_CBN, c_CBN, keep_CB, a_ND, h_BND):
    """(y_CBD, state): one token after another. u: dt x. Everything is in the accumulation dtype.

    Inputs are zero at padding, so the step is the identity there: decay exp(0), input 0.
    """

    def step(h_BND, inputs):
        u_BD, dt_BD, b_BN, c_BN, keep_B = inputs
        h_BND = _decays(dt_BD, keep_B, a_ND) * h_BND + b_BN[..., None] * u_BD[:, None]
        return h_BND, jnp.sum(h_BND * c_BN[..., None], axis=1)

    h_BND, y_CBD = jax.lax.scan(step, h_BND, (u_CBD, dt_CBD, b_CBN, c_CBN, keep_CB))
    return y_CBD, h_BND


def _steps_forward(*inputs):
    return _steps(*inputs), inputs


def _steps_backward(inputs, cotangents):
    """Only the two recurrences go token by token: the states, and their gradients g_t = c_t dy_t + decay_{t+1} g_{t+1}. All other
    products are made for the chunk at once, where XLA uses all cores."""
    u_CBD, dt_CBD, b_CBN, c_CBN, keep_CB, a_ND, first_BND = inputs
    dy_CBD, dlast_BND = cotangents
    decay_CBND = _decays(dt_CBD, keep_CB, a_ND)

    def forth(h_BND, inputs):
        decay_BND, new_BND = inputs
        kept_BND = decay_BND * h_BND
        return kept_BND + new_BND, kept_BND

    def back(after_BND, inputs):
        decay_BND, new_BND = inputs
        g_BND = after_BND + new_BND
        return decay_BND * g_BND, g_BND

    new_CBND = b_CBN[..., None] * u_CBD[:, :, None]
    _, kept_CBND = jax.lax.scan(forth, first_BND, (decay_CBND, new_CBND))
    dfirst_BND, g_CBND = jax.lax.scan(back, dlast_BND, (decay_CBND, c_CBN[..., None] * dy_CBD[:, :, None]), reverse=True)
    dlog_CBND = g_CBND * kept_CBND  # of log decay = dt a
    return (
        jnp.einsum("cbnd,cbn->cbd", g_CBND, b_CBN),
        jnp.einsum("cbnd,cbn->cbd", dlog_CBND * a_ND, jnp.ones_like(b_CBN)),  # a product sums over N faster than jnp.sum on CPU
        jnp.einsum("cbnd,cbd->cbn", g_CBND, u_CBD),
        jnp.einsum("cbnd,cbd->cbn", kept_CBND + new_CBND, dy_CBD),
        jnp.zeros_like(keep_CB),
        jnp.sum(dlog_CBND * dt_CBD[:, :, None], axis=(0, 1)),
        dfirst_BND,
    )


_steps.defvjp(_steps_forward, _steps_backward)


def recurrent(
    x_BTD: jax.Array, dt_BTD: jax.Array, b_BTN: jax.Array, c_BTN: jax.Array, *, a_DN: jax.Array, d_D: jax.Array,
    state: SelectiveScanState | None = None, pos: jax.Array | None = None, chunk: int = 16,
) -> tuple[jax.Array, SelectiveScanState]:  # fmt: skip
    """The definition, one token after another; the backward pass stores every `chunk`-th state and recomputes the others.

    On two CPU cores this is the fastest form. With float32, B16 T256 D128 N16, it takes 6 ms forward and 29 ms with gradients,
    the associative scan of `parallel` 89 and 371 ms. It is fast because states and decays are recomputed instead of read back,
    and because D is the last axis, so that the sum over N is vectorised.
    """
    acc, pos_BT, state = _prepare(x_BTD, dt_BTD, b_BTN, c_BTN, a_DN, d_D, state, pos)
    if x_BTD.shape[1] == 0:
        return x_BTD, state
    x, dt, b, c = (z.astype(acc) for z in _time.clean(pos_BT, x_BTD, dt_BTD, b_BTN, c_BTN))
    a_ND = a_DN.astype(acc).T

    def form(*xs_BC, state, pos):
        keep_BC = (pos != _time.START).astype(acc)
        y_CBD, state = _steps(*(jnp.moveaxis(z, 1, 0) for z in (*xs_BC, keep_BC)), a_ND, state)
        return jnp.moveaxis(y_CBD, 0, 1), state

    y_BTD, h_BND = _time.scan_chunks(form, jnp.swapaxes(state.h_BDN, 1, 2), (dt * x, dt, b, c), pos_BT, chunk, remat=False)
    y_BTD = _time.select(_time.valid(pos_BT), y_BTD + d_D.astype(acc) * x).astype(x_BTD.dtype)
    return y_BTD, SelectiveScanState(jnp.swapaxes(h_BND, 1, 2))


def _elements(x_BTD, dt_BTD, b_BTN, a_DN, pos_BT, acc) -> Summary:
    """The summary of each single token: two arrays [B, T, D, N]. Padding is the identity (decay 1, input 0)."""
    x_BTD, dt_BTD, b_BTN = (z.astype(acc) for z in _time.clean(pos_BT, x_BTD, dt_BTD, b_BTN))
    decay_BTDN = _time.select(pos_BT != _time.START, jnp.exp(dt_BTD[..., None] * a_DN.astype(acc)))
    return Summary(decay_BTDN, (dt_BTD * x_BTD)[..., None] * b_BTN[:, :, None])


def combine(first: Summary, second: Summary) -> Summary:
    """The summary of two segments, one after the other; associative."""
    return Summary(second.A_BDN * first.A_BDN, second.A_BDN * first.h_BDN + second.h_BDN)


def apply(summary: Summary, state: SelectiveScanState) -> SelectiveScanState:
    """The state after a segment with this summary, for the state before it."""
    return SelectiveScanState(summary.A_BDN * state.h_BDN + summary.h_BDN)


def summary(
    x_BTD: jax.Array, dt_BTD: jax.Array, b_BTN: jax.Array, c_BTN: jax.Array, *, a_DN: jax.Array, d_D: jax.Array,
    pos: jax.Array | None = None,
) -> Summary:  # fmt: skip
    """Total decay exp(A sum dt), and the state after the segment starting from zero. T >= 1."""
    acc, pos_BT, _ = _prepare(x_BTD, dt_BTD, b_BTN, c_BTN, a_DN, d_D, None, pos)
    _, state = recurrent(x_BTD, dt_BTD, b_BTN, c_BTN, a_DN=a_DN, d_D=d_D, pos=pos)
    dt_BTD = _time.select(_time.valid(pos_BT), dt_BTD).astype(acc)
    A_BDN = jnp.exp(jnp.sum(dt_BTD, axis=1)[..., None] * a_DN.astype(acc))
    return Summary(_time.select(_time.continues(pos_BT), A_BDN), state.h_BDN)


def parallel(
    x_BTD: jax.Array, dt_BTD: jax.Array, b_BTN: jax.Array, c_BTN: jax.Array, *, a_DN: jax.Array, d_D: jax.Array,
    state: SelectiveScanState | None = None, pos: jax.Array | None = None,
) -> tuple[jax.Array, SelectiveScanState]:  # fmt: skip
    """`jax.lax.associative_scan` over time: log T steps; memory is O(B T D N)."""
    acc, pos_BT, state = _prepare(x_BTD, dt_BTD, b_BTN, c_BTN, a_DN, d_D, state, pos)
    if x_BTD.shape[1] == 0:
        return x_BTD, state
    x_BTD, dt_BTD, b_BTN, c_BTN = _time.clean(pos_BT, x_BTD, dt_BTD, b_BTN, c_BTN)
    totals = jax.lax.associative_scan(combine, _elements(x_BTD, dt_BTD, b_BTN, a_DN, pos_BT, acc), axis=1)
    h_BTDN = totals.A_BDN * state.h_BDN[:, None] + totals.h_BDN
    y_BTD = jnp.einsum("btdn,btn->btd", h_BTDN, c_BTN.astype(acc)) + d_D.astype(acc) * x_BTD.astype(acc)
    y_BTD = _time.select(_time.valid(pos_BT), y_BTD).astype(x_BTD.dtype)
    return y_BTD, SelectiveScanState(h_BTDN[:, -1])


def chunkwise(
    x_BTD: jax.Array, dt_BTD: jax.Array, b_BTN: jax.Array, c_BTN: jax.Array, *, a_DN: jax.Array, d_D: jax.Array,
    state: SelectiveScanState | None = None, pos: jax.Array | None = None, chunk: int = 64,
) -> tuple[jax.Array, SelectiveScanState]:  # fmt: skip
    """An associative scan inside each chunk; the state is carried between chunks. The backward pass stores T / C states.

    Unlike linear attention, this recurrence cannot be written as matrix products. A chunk does log C times the work of
    `recurrent`, so this form pays off only on devices with more parallelism than [B, D, N] uses.
    """
    _, pos_BT, state = _prepare(x_BTD, dt_BTD, b_BTN, c_BTN, a_DN, d_D, state, pos)
    if x_BTD.shape[1] == 0:
        return x_BTD, state

    def form(*xs, state, pos):
        return parallel(*xs, a_DN=a_DN, d_D=d_D, state=state, pos=pos)

    return _time.scan_chunks(form, state, (x_BTD, dt_BTD, b_BTN, c_BTN), pos_BT, chunk)


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}
CUT = "affine"


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`."""
    width, state_size = 5, 3

    def inputs(key, time):
        keys = jax.random.split(key, 4)
        x_BTD = jax.random.normal(keys[0], (batch, time, width), dtype)
        dt_BTD = jax.nn.softplus(jax.random.normal(keys[1], (batch, time, width), dtype) - 2)
        b_BTN, c_BTN = (jax.random.normal(k, (batch, time, state_size), dtype) for k in keys[2:])
        return x_BTD, dt_BTD, b_BTN, c_BTN

    key_x, key_prefix, key_d = jax.random.split(key, 3)
    a_DN = -jnp.broadcast_to(jnp.arange(1, state_size + 1, dtype=dtype) / 4, (width, state_size))
    weights: dict[str, Any] = {"a_DN": a_DN, "d_D": 0.1 * jax.random.normal(key_d, (width,), dtype)}
    state = recurrent(*inputs(key_prefix, 32), **weights)[1]
    return Example(inputs(key_x, time), weights, {}, state)


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """The hard inputs by name, see `jaxseq.ops.stresses`."""
    base = example(key, batch, time, dtype)
    shape = base.weights["a_DN"].shape
    return stresses(key, base, shape, lambda a_DN: base._replace(weights=base.weights | {"a_DN": a_DN}))
