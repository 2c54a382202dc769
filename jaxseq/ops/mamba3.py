"""The recurrence of Mamba-3 (single input, single output): trapezoidal steps, rotating state (Lahoti et al. 2026, "Mamba-3", §3).

    S_t = a_t R_t (S_{t-1} + (1 - m_t) dt_t k_{t-1}^T v_{t-1}) + m_t dt_t k_t^T v_t         S [K, V] per head
    y_t = q_t S_t

In the paper q = C, k = B, v = x, a_t = exp(dt_t A) and m = lambda, the weight of the new end point: m = 1 is Mamba-2's step,
m = 1/2 the trapezoidal rule. R_t rotates pairs of key channels (i, i + P) by theta_t, with P angles per head; channels from 2P on
are unchanged. The paper writes this complex diagonal as a rotary embedding of B and C by the sum of all angles so far. Here the
state is rotated instead, so an angle is a sum over the tokens of one chunk, however long the sequence is. log_a = log a_t <= 0.

q and k may have fewer heads G than v: each is shared by H / G heads. State: S_BHKV in the accumulation dtype, and the last k and
v in the inputs' dtype. No `summary`: the update is not affine in the state, because it contains k^T v of the last token.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq.ops import _decay, _delta, _time
from jaxseq.ops._example import Example, stresses

CHUNK = 64


class Mamba3State(NamedTuple):
    """Matrix state S [B, H, K, V] in the accumulation dtype; last key and value in the inputs' dtype."""

    S_BHKV: jax.Array
    k_BGK: jax.Array  # of the last token
    v_BHV: jax.Array


class _Total(NamedTuple):
    """Effect of a chunk on the incoming state: S -> A R S + S'."""

    A_BH: jax.Array
    turn_BHP: tuple[jax.Array, jax.Array]  # (cosine, sine); the angle itself would lose digits as it grows
    S_BHKV: jax.Array


def init_state(
    batch: int, heads: int, groups: int, key_size: int, value_size: int, dtype: DTypeLike = jnp.float32
) -> Mamba3State:
    """The empty state: S in the accumulation dtype, k and v in `dtype`."""
    acc = _time.accumulation_dtype(jnp.zeros((), dtype))
    k_BGK, v_BHV = jnp.zeros((batch, groups, key_size), dtype), jnp.zeros((batch, heads, value_size), dtype)
    return Mamba3State(jnp.zeros((batch, heads, key_size, value_size), acc), k_BGK, v_BHV)


def _of_angle(angle) -> tuple[jax.Array, jax.Array]:
    return jnp.cos(angle), jnp.sin(angle)


def _turn(x, turn, axis: int = -1):
    """Rotate the channel pairs (i, i + P) of x along `axis` by P angles; `turn` is (cosines, sines)."""
    x = jnp.moveaxis(x, axis, -1)
    cos, sin = (jnp.expand_dims(y, range(y.ndim - 1, x.ndim - 1)) for y in turn)
    count = cos.shape[-1]
    a, b = x[..., :count], x[..., count : 2 * count]
    y = jnp.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., 2 * count :]], axis=-1)
    return jnp.moveaxis(y, -1, axis)


def _enter(q_BTGK, k_BTGK, v_BTHV, log_a_BTH, dt_BTH, m_BTH, theta_BTHP, state, pos):
    chex.assert_rank([q_BTGK, k_BTGK, v_BTHV, log_a_BTH, theta_BTHP], [4, 4, 4, 3, 4])
    chex.assert_equal_shape([log_a_BTH, dt_BTH, m_BTH])
    chex.assert_equal_shape_prefix([v_BTHV, log_a_BTH, theta_BTHP], 3)
    chex.assert_scalar_non_negative(q_BTGK.shape[3] - 2 * theta_BTHP.shape[3])
    pos_BT = _time.positions(pos, q_BTGK)
    chex.assert_shape(pos_BT, q_BTGK.shape[:2])
    xs = _time.clean(pos_BT, q_BTGK, k_BTGK, v_BTHV, log_a_BTH, dt_BTH, m_BTH, theta_BTHP)
    q, k, v = _delta.spread(*xs[:3])
    if state is None:
        state = init_state(v.shape[0], v.shape[2], k_BTGK.shape[2], k_BTGK.shape[3], v.shape[3], q_BTGK.dtype)
    chex.assert_shape(state.S_BHKV, (v.shape[0], v.shape[2], k.shape[3], v.shape[3]))
    return (q, k, v, *(x.astype(v.dtype) for x in xs[3:])), pos_BT, state


def recurrent(
    q_BTGK: jax.Array, k_BTGK: jax.Array, v_BTHV: jax.Array, log_a_BTH: jax.Array, dt_BTH: jax.Array, m_BTH: jax.Array,
    theta_BTHP: jax.Array, *, state: Mamba3State | None = None, pos: jax.Array | None = None,
) -> tuple[jax.Array, Mamba3State]:  # fmt: skip
    """One token after another."""
    xs = (q_BTGK, k_BTGK, v_BTHV, log_a_BTH, dt_BTH, m_BTH, theta_BTHP)
    arrays, pos_BT, before = _enter(*xs, state, pos)
    share = v_BTHV.shape[2] // k_BTGK.shape[2]

    def step(state, q, k, v, log_a, dt, m, theta, k_BGK, v_BHV):
        last = jnp.repeat(state.k_BGK.astype(v.dtype), share, axis=1)[..., None] * state.v_BHV.astype(v.dtype)[..., None, :]
        S = _turn(state.S_BHKV + ((1 - m) * dt)[..., None, None] * last, _of_angle(theta), axis=-2)
        S = jnp.exp(log_a)[..., None, None] * S + (m * dt)[..., None, None] * k[..., None] * v[..., None, :]
        return Mamba3State(S, k_BGK, v_BHV), jnp.einsum("bhk,bhkv->bhv", q, S)

    y_BTHV, after = _time.scan_time(step, before, (*arrays, k_BTGK, v_BTHV), pos_BT)
    return y_BTHV.astype(q_BTGK.dtype), after


def _inside(pos_BT, q, k, own, written, log_a, theta):
    """(contribution of the chunk to its own outputs, q rotated back to the start of the chunk, its total).

    Angles up to t and after t are both summed directly, without document starts and padding. If one were the total minus the
    other, their cancelling gradients would leave rounding errors larger than the gradients of strongly decayed pairs.
    """
    seg_BT = _time.segments(pos_BT)
    theta = _time.select(pos_BT > _time.START, theta)
    decays = _decay.head_decays(log_a, pos_BT, q.dtype)
    angle, rest = jax.vmap(_decay.upto)(theta), jax.vmap(_decay.after)(theta)
    q_back, k_back = (_turn(x, _of_angle(-angle)) for x in (q, k))
    scores_BHTS = _decay.products(q_back, k_back, decays, _decay.before(seg_BT))
    y = jnp.einsum("bhts,bshv->bthv", scores_BHTS, written) + jnp.sum(q * k, axis=-1, keepdims=True) * own
    out_BTHK = _time.select(_time.last_segment(pos_BT), decays.after_BTHK)
    left = jnp.einsum("bthk,bthv->bhkv", _turn(k, _of_angle(rest)) * out_BTHK, written)
    A_BH = _time.select(_time.continues(pos_BT), decays.upto_BTHK[:, -1, :, 0])
    reads = q_back * _time.select(seg_BT == 0, decays.upto_BTHK)
    return y, reads, _Total(A_BH, _of_angle(angle[:, -1]), left)


def _combine(first: _Total, second: _Total) -> _Total:
    (cos, sin), (cos_2, sin_2) = first.turn_BHP, second.turn_BHP
    turn_BHP = cos * cos_2 - sin * sin_2, cos * sin_2 + sin * cos_2
    turned = _turn(first.S_BHKV, second.turn_BHP, axis=-2)
    return _Total(first.A_BH * second.A_BH, turn_BHP, second.A_BH[..., None, None] * turned + second.S_BHKV)


def _apply(total: _Total, S_BHKV):
    return total.A_BH[..., None, None] * _turn(S_BHKV, total.turn_BHP, axis=-2) + total.S_BHKV


def _last(x_BT, before, pos_BT):
    """x at the last token of each row that is not padding; `before` if there is none."""
    index_B = jnp.maximum(jnp.sum(_time.valid(pos_BT), axis=1) - 1, 0)
    found = jnp.take_along_axis(x_BT, _time.expand(index_B[:, None], x_BT), axis=1)[:, 0]
    return _time.select(_time.valid(pos_BT)[:, 0], found, before)


def parallel(
    q_BTGK: jax.Array, k_BTGK: jax.Array, v_BTHV: jax.Array, log_a_BTH: jax.Array, dt_BTH: jax.Array, m_BTH: jax.Array,
    theta_BTHP: jax.Array, *, state: Mamba3State | None = None, pos: jax.Array | None = None,
) -> tuple[jax.Array, Mamba3State]:  # fmt: skip
    """All chunks of 64 tokens at once; their states are combined by an associative scan.

    Token s adds (m_s dt_s + (1 - m_{s+1}) dt_{s+1}) k_s^T v_s to the state; the second term is added at the next token.
    """
    xs = (q_BTGK, k_BTGK, v_BTHV, log_a_BTH, dt_BTH, m_BTH, theta_BTHP)
    (q, k, v, log_a, dt, m, theta), pos_BT, state = _enter(*xs, state, pos)
    time = q.shape[1]
    if time == 0:
        return v.astype(q_BTGK.dtype), state
    entering_BTH = _time.select(pos_BT > _time.START, (1 - m) * dt)  # weight of the previous token's k^T v
    following_BTH = jnp.pad(entering_BTH[:, 1:], ((0, 0), (0, 1), (0, 0)))
    own, written = (m * dt)[..., None] * v, (m * dt + following_BTH)[..., None] * v
    share = v.shape[2] // state.k_BGK.shape[1]
    last_k = jnp.repeat(state.k_BGK.astype(v.dtype), share, axis=1)
    S_BHKV = state.S_BHKV + (entering_BTH[:, 0, :, None] * last_k)[..., None] * state.v_BHV.astype(v.dtype)[..., None, :]

    parts = _time.split_chunks(min(CHUNK, time), pos_BT, q, k, own, written, log_a, theta)
    y, reads, totals = jax.vmap(_inside)(*parts)
    front, S_BHKV = _decay.chunk_parallel(totals, _combine, S_BHKV, _apply)
    y += jnp.einsum("zbthk,zbhkv->zbthv", reads, front)
    y_BTHV = _time.select(_time.valid(pos_BT), _time.join_chunks(y, time)).astype(q_BTGK.dtype)
    k_BTGK, v_BTHV = _time.clean(pos_BT, k_BTGK, v_BTHV)
    return y_BTHV, Mamba3State(S_BHKV, _last(k_BTGK, state.k_BGK, pos_BT), _last(v_BTHV, state.v_BHV, pos_BT))


def chunkwise(
    q_BTGK: jax.Array, k_BTGK: jax.Array, v_BTHV: jax.Array, log_a_BTH: jax.Array, dt_BTH: jax.Array, m_BTH: jax.Array,
    theta_BTHP: jax.Array, *, state: Mamba3State | None = None, pos: jax.Array | None = None, chunk: int = 4 * CHUNK,
) -> tuple[jax.Array, Mamba3State]:  # fmt: skip
    """A few chunks at once; the state is carried between them. Memory is linear in T."""
    xs = (q_BTGK, k_BTGK, v_BTHV, log_a_BTH, dt_BTH, m_BTH, theta_BTHP)
    _, pos_BT, state = _enter(*xs, state, pos)
    if q_BTGK.shape[1] == 0:
        return v_BTHV.astype(q_BTGK.dtype), state
    return _time.scan_chunks(parallel, state, xs, pos_BT, chunk)


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}
CUT = "serial"


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`."""
    def inputs(key, time):
        keys = jax.random.split(key, 6)
        q_BTGK, k_BTGK = (jax.random.normal(k, (batch, time, 1, 5), dtype) for k in keys[:2])
        v_BTHV = jax.random.normal(keys[2], (batch, time, 2, 3), dtype)
        theta_BTHP = jax.random.normal(keys[3], (batch, time, 2, 2), dtype)
        dt_BTH = jax.nn.softplus(jax.random.normal(keys[4], (batch, time, 2), dtype) - 2)
        m_BTH = jax.nn.sigmoid(jax.random.normal(keys[5], (batch, time, 2), dtype))
        return q_BTGK, k_BTGK, v_BTHV, -0.5 * dt_BTH, dt_BTH, m_BTH, theta_BTHP

    key_x, key_prefix = jax.random.split(key)
    return Example(inputs(key_x, time), {}, {}, recurrent(*inputs(key_prefix, 32))[1])


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """The hard inputs by name, see `jaxseq.ops.stresses`."""
    base = example(key, batch, time, dtype)
    q, k, v, log_a_BTH, *rest = base.xs
    return stresses(key, base, log_a_BTH.shape, lambda log_a_BTH: base._replace(xs=(q, k, v, log_a_BTH, *rest)))
