"""Retention: linear attention whose state decays by a scalar per head (RetNet, Sun et al. 2023, arXiv:2307.08621, §2).

    S_t = a_t S_{t-1} + k_t^T v_t          (eq. 6; there a_t = gamma, fixed)
    y_t = q_t S_t

with S [K, V] per head. `log_a_BTH <= 0` is log a_t. It may depend on the data, so gated retention, GLA with scalar gates and
Mamba-2's SSD are also this op (Dao & Gu 2024, arXiv:2405.21060, §7: there q = C, k = B, v = dt x, log a = dt A).
q and k may have fewer heads G than v: each is shared by H / G heads (the groups of SSD). The mixer does the rotation, the
scaling of k and the normalisation.

State: S_BHKV in the accumulation dtype. Scores are products in the inputs' dtype summed in the accumulation dtype. Decays are
sums of log-decays in the accumulation dtype, over only the tokens between s and t (`_decay`), masked before exp. The paper's
xi and zeta (eq. 7) are `in_` and `out` below.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from jaxseq import compat
from jaxseq.ops import _decay, _time
from jaxseq.ops._example import Example, stresses


class RetentionState(NamedTuple):
    """Matrix state S [B, H, K, V], in the accumulation dtype."""

    S_BHKV: jax.Array  # sum of k^T v, decayed


class Summary(NamedTuple):
    """Effect of a segment on the incoming state: S -> A S + S'."""

    A_BH: jax.Array  # total decay; 0 if a document starts in the segment
    S_BHKV: jax.Array  # S': the state after the segment, starting from zero


def init_state(batch: int, heads: int, key_size: int, value_size: int, dtype: DTypeLike = jnp.float32) -> RetentionState:
    """The empty state, in the accumulation dtype for inputs of `dtype`."""
    return RetentionState(jnp.zeros((batch, heads, key_size, value_size), _time.accumulation_dtype(jnp.zeros((), dtype))))


def _prepare(q_BTGK, k_BTGK, v_BTHV, log_a_BTH, state, pos):
    chex.assert_rank([q_BTGK, k_BTGK, v_BTHV, log_a_BTH], [4, 4, 4, 3])
    chex.assert_equal_shape([q_BTGK, k_BTGK])
    chex.assert_equal_shape_prefix([v_BTHV, log_a_BTH], 3)
    chex.assert_equal_shape_prefix([q_BTGK, v_BTHV], 2)
    chex.assert_is_divisible(v_BTHV.shape[2], q_BTGK.shape[2])
    pos_BT = _time.positions(pos, q_BTGK)
    chex.assert_shape(pos_BT, q_BTGK.shape[:2])
    if state is not None:
        chex.assert_shape(state.S_BHKV, (v_BTHV.shape[0], v_BTHV.shape[2], q_BTGK.shape[3], v_BTHV.shape[3]))
    return _time.accumulation_dtype(q_BTGK, v_BTHV), pos_BT


def _empty(q_BTGK, v_BTHV) -> RetentionState:
    sizes = v_BTHV.shape[0], v_BTHV.shape[2], q_BTGK.shape[3], v_BTHV.shape[3]
    return init_state(*sizes, _time.accumulation_dtype(q_BTGK, v_BTHV))


def _spread(x, heads: int, axis: int):
    """Repeat each of the G groups along `axis` for its H / G heads."""
    return x if x.shape[axis] == heads else jnp.repeat(x, heads // x.shape[axis], axis=axis)


def _log_decay(log_a_BTH, pos_BT, acc):
    """Log-decays, set to zero at padding and document starts."""
    return _time.select(pos_BT > _time.START, log_a_BTH.astype(acc))


def recurrent(
    q_BTGK: jax.Array, k_BTGK: jax.Array, v_BTHV: jax.Array, log_a_BTH: jax.Array, *, state: RetentionState | None = None,
    pos: jax.Array | None = None,
) -> tuple[jax.Array, RetentionState]:  # fmt: skip
    """Eq. 6, one token after another."""
    acc, pos_BT = _prepare(q_BTGK, k_BTGK, v_BTHV, log_a_BTH, state, pos)

    def step(state, q_BGK, k_BGK, v_BHV, log_a_BH):
        q_BHK, k_BHK = (_spread(x, v_BHV.shape[1], 1) for x in (q_BGK, k_BGK))
        a_BH11 = jnp.exp(log_a_BH.astype(acc))[..., None, None]
        S_BHKV = a_BH11 * state.S_BHKV + k_BHK.astype(acc)[..., None] * v_BHV.astype(acc)[..., None, :]
        y_BHV = jnp.einsum("bhk,bhkv->bhv", q_BHK.astype(acc), S_BHKV)
        return RetentionState(S_BHKV), y_BHV.astype(q_BGK.dtype)

    state = _empty(q_BTGK, v_BTHV) if state is None else state
    return _time.scan_time(step, state, (q_BTGK, k_BTGK, v_BTHV, log_a_BTH), pos_BT)


def _inside(q_BTGK, k_BTGK, v_BTHV, log_a_BTH, pos_BT):
    """Contribution [B, T, H, V] of the segment itself: (q k^T * D) v, D[t, s] = a_{s+1} ... a_t (eq. 5)."""
    time, seg_BT = pos_BT.shape[1], _time.segments(pos_BT)
    mask_BTS = (seg_BT[:, :, None] == seg_BT[:, None, :]) & jnp.tril(jnp.ones((time, time), bool))
    sums_BHTS = jax.vmap(jax.vmap(_decay.between))(jnp.moveaxis(log_a_BTH, 1, 2))
    gap_BHTS = jnp.where(mask_BTS[:, None], sums_BHTS, -jnp.inf)
    scores_BGTS = compat.einsum("btgk,bsgk->bgts", q_BTGK, k_BTGK, dtype=log_a_BTH.dtype)
    weights_BHTS = (_spread(scores_BGTS, v_BTHV.shape[2], 1) * jnp.exp(gap_BHTS)).astype(v_BTHV.dtype)
    return compat.einsum("bhts,bshv->bthv", weights_BHTS, v_BTHV, dtype=log_a_BTH.dtype)


def _from_state(q_BTGK, S_BHKV, log_a_BTH, pos_BT):
    """Contribution [B, T, H, V] of the incoming state: a_1 ... a_t q_t S."""
    in_BTH = _time.select(_time.segments(pos_BT) == 0, jnp.exp(jax.vmap(_decay.upto)(log_a_BTH)))
    S_BGRKV = S_BHKV.reshape(S_BHKV.shape[0], q_BTGK.shape[2], -1, *S_BHKV.shape[2:])  # R heads a group
    y_BTGRV = jnp.einsum("btgk,bgrkv->btgrv", q_BTGK.astype(S_BHKV.dtype), S_BGRKV)
    return in_BTH[..., None] * y_BTGRV.reshape(*in_BTH.shape, -1)


def _summary(k_BTGK, v_BTHV, log_a_BTH, pos_BT) -> Summary:
    acc = log_a_BTH.dtype
    out_BTH = _time.select(_time.last_segment(pos_BT), jnp.exp(jax.vmap(_decay.after)(log_a_BTH)))
    v_BTHV = v_BTHV.astype(acc) * out_BTH[..., None]
    v_BTGRV = v_BTHV.reshape(*k_BTGK.shape[:3], -1, v_BTHV.shape[3])  # R heads a group
    S_BGRKV = jnp.einsum("btgk,btgrv->bgrkv", k_BTGK.astype(acc), v_BTGRV)
    S_BHKV = S_BGRKV.reshape(v_BTHV.shape[0], v_BTHV.shape[2], *S_BGRKV.shape[3:])
    return Summary(_time.select(_time.continues(pos_BT), jnp.exp(jnp.sum(log_a_BTH, axis=1))), S_BHKV)


def summary(
    q_BTGK: jax.Array, k_BTGK: jax.Array, v_BTHV: jax.Array, log_a_BTH: jax.Array, *, pos: jax.Array | None = None
) -> Summary:
    """R_i = K^T (V * zeta) of eq. 7, and the decay of the incoming state. T >= 1."""
    acc, pos_BT = _prepare(q_BTGK, k_BTGK, v_BTHV, log_a_BTH, None, pos)
    k_BTGK, v_BTHV, log_a_BTH = _time.clean(pos_BT, k_BTGK, v_BTHV, log_a_BTH)
    return _summary(k_BTGK, v_BTHV, _log_decay(log_a_BTH, pos_BT, acc), pos_BT)


def combine(first: Summary, second: Summary) -> Summary:
    """The summary of two segments, one after the other; associative."""
    return Summary(second.A_BH * first.A_BH, second.A_BH[..., None, None] * first.S_BHKV + second.S_BHKV)


def apply(summary: Summary, state: RetentionState) -> RetentionState:
    """The state after a segment with this summary, for the state before it."""
    return RetentionState(summary.A_BH[..., None, None] * state.S_BHKV + summary.S_BHKV)


def parallel(
    q_BTGK: jax.Array, k_BTGK: jax.Array, v_BTHV: jax.Array, log_a_BTH: jax.Array, *, state: RetentionState | None = None,
    pos: jax.Array | None = None,
) -> tuple[jax.Array, RetentionState]:  # fmt: skip
    """Eq. 5: one T x T masked product; memory and work are quadratic in T."""
    acc, pos_BT = _prepare(q_BTGK, k_BTGK, v_BTHV, log_a_BTH, state, pos)
    if q_BTGK.shape[1] == 0:
        return v_BTHV.astype(q_BTGK.dtype), _empty(q_BTGK, v_BTHV) if state is None else state
    q_BTGK, k_BTGK, v_BTHV, log_a_BTH = _time.clean(pos_BT, q_BTGK, k_BTGK, v_BTHV, log_a_BTH)
    log_a_BTH = _log_decay(log_a_BTH, pos_BT, acc)
    y_BTHV = _inside(q_BTGK, k_BTGK, v_BTHV, log_a_BTH, pos_BT)
    total = _summary(k_BTGK, v_BTHV, log_a_BTH, pos_BT)
    if state is None:
        state = RetentionState(total.S_BHKV)
    else:
        y_BTHV += _from_state(q_BTGK, state.S_BHKV, log_a_BTH, pos_BT)
        state = apply(total, state)
    return _time.select(_time.valid(pos_BT), y_BTHV).astype(q_BTGK.dtype), state


def chunkwise(
    q_BTGK: jax.Array, k_BTGK: jax.Array, v_BTHV: jax.Array, log_a_BTH: jax.Array, *, state: RetentionState | None = None,
    pos: jax.Array | None = None, chunk: int = 64,
) -> tuple[jax.Array, RetentionState]:  # fmt: skip
    """Eq. 7: all chunks of `chunk` tokens at once; their states are combined by an associative scan. Memory is linear in T."""
    _, pos_BT = _prepare(q_BTGK, k_BTGK, v_BTHV, log_a_BTH, state, pos)
    time = q_BTGK.shape[1]
    if time <= chunk:
        return parallel(q_BTGK, k_BTGK, v_BTHV, log_a_BTH, state=state, pos=pos)
    acc = _time.accumulation_dtype(q_BTGK, v_BTHV)
    state = _empty(q_BTGK, v_BTHV) if state is None else state

    def chunks(state, *xs):
        pos_ZBC, q, k, v, log_a = _time.split_chunks(chunk, pos_BT, *_time.clean(pos_BT, *xs))  # Z = T / C chunks in front
        log_a = jax.vmap(lambda log_a, pos: _log_decay(log_a, pos, acc))(log_a, pos_ZBC)
        totals = jax.vmap(_summary)(k, v, log_a, pos_ZBC)
        before, last = _decay.chunk_parallel(totals, combine, state, apply)
        before = checkpoint_name(before.S_BHKV, "states")
        y = jax.vmap(_inside)(q, k, v, log_a, pos_ZBC) + jax.vmap(_from_state)(q, before, log_a, pos_ZBC)
        return _time.select(_time.valid(pos_BT), _time.join_chunks(y, time)).astype(q_BTGK.dtype), last

    # Of each chunk only the state before it is stored: computing the rest again is cheaper than storing it.
    policy = jax.checkpoint_policies.save_only_these_names("states")
    return jax.checkpoint(chunks, policy=policy)(state, q_BTGK, k_BTGK, v_BTHV, log_a_BTH)


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}
CUT = "affine"


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`."""
    def inputs(key, time):
        keys = jax.random.split(key, 4)
        q_BTGK, k_BTGK = (jax.random.normal(k, (batch, time, 2, 3), dtype) for k in keys[:2])
        v_BTHV = jax.random.normal(keys[2], (batch, time, 4, 2), dtype)
        log_a_BTH = -jax.nn.softplus(jax.random.normal(keys[3], (batch, time, 4), dtype) - 3)
        return q_BTGK, k_BTGK, v_BTHV, log_a_BTH

    key_x, key_prefix = jax.random.split(key)
    state = recurrent(*inputs(key_prefix, 32))[1]
    return Example(inputs(key_x, time), {}, {}, state)


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """The hard inputs by name, see `jaxseq.ops.stresses`."""
    base = example(key, batch, time, dtype)
    *qkv, log_a_BTH = base.xs
    return stresses(key, base, log_a_BTH.shape, lambda log_a_BTH: base._replace(xs=(*qkv, log_a_BTH)))
