"""Log-linear attention: retention with a state for each of about log2 t parts of the past (Guo et al. 2025, arXiv:2506.04761).

    y_t = sum_s scale_t[level(s, t)] a_{s+1} ... a_t (q_t . k_s) v_s,   level(s, t) = bit_length(s xor t)      (§3, eq. 4)

over the tokens s <= t of t's document, which are numbered from 0. So level 0 is the token itself, and level l >= 1 holds the
2^(l-1) tokens before t - t mod 2^(l-1) if bit l - 1 of t is set, else none: the parts of a Fenwick tree. `log_a_BTH <= 0` is
log a_t, and `scale_BTHL` has a factor for each level of each query. With all factors 1 this is `retention`, whose heads and
groups it has.

Departure from the paper: with L levels, the last level also holds all older tokens, so no sequence is too long for L. Up to
2^(L-1) tokens nothing changes.

State: one matrix S for each level but level 0, and the number of tokens that they hold. From a later token, all tokens of a
part have the same level, so parts are merged and never split. The sums of log-decays are those of `_decay`.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq import compat
from jaxseq.ops import _decay, _time, retention
from jaxseq.ops._example import Example, stresses


class LogLinearState(NamedTuple):
    S_BPHKV: jax.Array  # sums of k^T v, decayed, of level p + 1 seen from the next token; in the accumulation dtype
    count_B: jax.Array  # int32, tokens of the document


def init_state(
    batch: int, levels: int, heads: int, key_size: int, value_size: int, dtype: DTypeLike = jnp.float32
) -> LogLinearState:
    """The empty state, in the accumulation dtype for inputs of `dtype`. levels: L, at least 2."""
    acc = _time.accumulation_dtype(jnp.zeros((), dtype))
    return LogLinearState(jnp.zeros((batch, levels - 1, heads, key_size, value_size), acc), jnp.zeros(batch, jnp.int32))


def level(s: jax.Array, t: jax.Array, levels: int) -> jax.Array:
    """The level of token s as seen from token t of the same document; s <= t."""
    return jnp.minimum(32 - jax.lax.clz(jnp.bitwise_xor(s, t)), levels - 1)


def _newest(count: jax.Array, parts: int) -> jax.Array:
    """[..., P]: a token of each part of a state that holds `count` tokens. Any number if the part is empty."""
    bit_P = jnp.arange(parts, dtype=jnp.int32)
    return jnp.maximum(((count[..., None] >> bit_P) << bit_P) - 1, 0)


def _prepare(q_BTGK, k_BTGK, v_BTHV, log_a_BTH, scale_BTHL, state: LogLinearState | None, pos):
    """(accumulation dtype, pos_BT, state)."""
    chex.assert_rank(scale_BTHL, 4)
    chex.assert_equal_shape_prefix([v_BTHV, scale_BTHL], 3)
    acc, pos_BT = retention._prepare(q_BTGK, k_BTGK, v_BTHV, log_a_BTH, None, pos)
    sizes = q_BTGK.shape[0], scale_BTHL.shape[3], v_BTHV.shape[2], q_BTGK.shape[3], v_BTHV.shape[3]
    empty = init_state(*sizes, acc)
    if state is None:
        return acc, pos_BT, empty
    chex.assert_trees_all_equal_shapes(state, empty)
    bits_BP = state.count_B[:, None] >> jnp.arange(sizes[1] - 1, dtype=jnp.int32)
    held_BP = (bits_BP % 2 == 1).at[:, -1].set(bits_BP[:, -1] > 0)  # the last part holds all older tokens
    return acc, pos_BT, state._replace(S_BPHKV=_time.select(held_BP, state.S_BPHKV))  # empty parts have no gradient


def recurrent(
    q_BTGK: jax.Array, k_BTGK: jax.Array, v_BTHV: jax.Array, log_a_BTH: jax.Array, scale_BTHL: jax.Array, *,
    state: LogLinearState | None = None, pos: jax.Array | None = None,
) -> tuple[jax.Array, LogLinearState]:  # fmt: skip
    """One token after another: read all parts, then merge those that the next token sees as one (§3.2)."""
    acc, pos_BT, state = _prepare(q_BTGK, k_BTGK, v_BTHV, log_a_BTH, scale_BTHL, state, pos)
    levels = scale_BTHL.shape[3]

    def step(state, q_BGK, k_BGK, v_BHV, log_a_BH, scale_BHL):
        q_BHK, k_BHK = (retention._spread(x.astype(acc), v_BHV.shape[1], 1) for x in (q_BGK, k_BGK))
        S_BPHKV = jnp.exp(log_a_BH.astype(acc))[:, None, :, None, None] * state.S_BPHKV
        own_BHKV = k_BHK[..., None] * v_BHV.astype(acc)[..., None, :]
        S_BLHKV = jnp.concatenate([own_BHKV[:, None], S_BPHKV], axis=1)
        y_BHV = jnp.einsum("bhk,bhl,blhkv->bhv", q_BHK, scale_BHL.astype(acc), S_BLHKV)
        members_BL = jnp.concatenate([state.count_B[:, None], _newest(state.count_B, levels - 1)], axis=1)
        part_BL = level(members_BL, state.count_B[:, None] + 1, levels) - 1
        merged_BPHKV = jnp.einsum("blp,blhkv->bphkv", jax.nn.one_hot(part_BL, levels - 1, dtype=acc), S_BLHKV)
        return LogLinearState(merged_BPHKV, state.count_B + 1), y_BHV.astype(q_BGK.dtype)

    return _time.scan_time(step, state, (q_BTGK, k_BTGK, v_BTHV, log_a_BTH, scale_BTHL), pos_BT)


def _numbers(count_B: jax.Array, pos_BT: jax.Array) -> jax.Array:
    """[B, T]: the number of each token in its document, from the number of tokens in the state."""
    index_T = jnp.arange(pos_BT.shape[1], dtype=jnp.int32)
    start_BT = jax.lax.cummax(jnp.where(pos_BT == _time.START, index_T, -1), axis=1)
    return index_T + jnp.where(start_BT < 0, count_B[:, None], -start_BT)


def _factors(scale_BTHL, level_BTS, acc) -> jax.Array:
    """[B, H, T, S]: each query's factor for the level of each key or part."""
    scale_BHTL = jnp.moveaxis(scale_BTHL, 2, 1).astype(acc)
    return jnp.take_along_axis(scale_BHTL, level_BTS[:, None], axis=3, mode="clip")


def _inside(q_BTGK, k_BTGK, v_BTHV, log_a_BTH, scale_BTHL, number_BT, pos_BT):
    """Contribution [B, T, H, V] of these tokens: the hierarchical mask (eq. 5) times that of the decays."""
    acc, time, seg_BT = log_a_BTH.dtype, pos_BT.shape[1], _time.segments(pos_BT)
    mask_BTS = (seg_BT[:, :, None] == seg_BT[:, None, :]) & jnp.tril(jnp.ones((time, time), bool))
    sums_BHTS = jax.vmap(jax.vmap(_decay.between))(jnp.moveaxis(log_a_BTH, 1, 2))
    level_BTS = level(number_BT[:, None, :], number_BT[:, :, None], scale_BTHL.shape[3])
    weights_BHTS = jnp.exp(jnp.where(mask_BTS[:, None], sums_BHTS, -jnp.inf)) * _factors(scale_BTHL, level_BTS, acc)
    scores_BGTS = compat.einsum("btgk,bsgk->bgts", q_BTGK, k_BTGK, dtype=acc)
    weights_BHTS *= retention._spread(scores_BGTS, v_BTHV.shape[2], 1)
    return compat.einsum("bhts,bshv->bthv", weights_BHTS.astype(v_BTHV.dtype), v_BTHV, dtype=acc)


def _from_state(q_BTGK, state: LogLinearState, log_a_BTH, scale_BTHL, number_BT, pos_BT):
    """Contribution [B, T, H, V] of the incoming state."""
    S_BPHKV, acc = state.S_BPHKV, state.S_BPHKV.dtype
    upto_BTH = _time.select(_time.segments(pos_BT) == 0, jnp.exp(jax.vmap(_decay.upto)(log_a_BTH)))
    member_BP = _newest(state.count_B, S_BPHKV.shape[1])
    level_BTP = level(member_BP[:, None, :], number_BT[:, :, None], scale_BTHL.shape[3])
    factor_BHTP = _factors(scale_BTHL, level_BTP, acc) * jnp.moveaxis(upto_BTH, 2, 1)[..., None]
    q_BTHK = retention._spread(q_BTGK.astype(acc), S_BPHKV.shape[2], 2)
    return jnp.einsum("bthk,bhtp,bphkv->bthv", q_BTHK, factor_BHTP, S_BPHKV)


def _after(k_BTGK, v_BTHV, log_a_BTH, state: LogLinearState, number_BT, pos_BT) -> LogLinearState:
    """The state after these tokens. T >= 1."""
    acc, (_, parts, heads, *_) = state.S_BPHKV.dtype, state.S_BPHKV.shape
    kept_B = _time.continues(pos_BT)
    last_BT = _time.last_segment(pos_BT)
    count_B = jnp.where(kept_B, state.count_B, 0) + jnp.sum(last_BT, axis=1, dtype=jnp.int32)
    part_of = lambda member: jax.nn.one_hot(level(member, count_B[:, None], parts + 1) - 1, parts, dtype=acc)  # noqa: E731
    out_BTH = _time.select(last_BT, jnp.exp(jax.vmap(_decay.after)(log_a_BTH)))
    v_BTHV, k_BTHK = v_BTHV.astype(acc) * out_BTH[..., None], retention._spread(k_BTGK.astype(acc), heads, 2)
    S_BPHKV = jnp.einsum("btp,bthk,bthv->bphkv", part_of(number_BT), k_BTHK, v_BTHV)
    decay_BH = _time.select(kept_B, jnp.exp(jnp.sum(log_a_BTH, axis=1)))
    old_BPJ = part_of(_newest(state.count_B, parts))
    S_BPHKV += jnp.einsum("bpj,bh,bphkv->bjhkv", old_BPJ, decay_BH, state.S_BPHKV)
    return LogLinearState(S_BPHKV, count_B)


def parallel(
    q_BTGK: jax.Array, k_BTGK: jax.Array, v_BTHV: jax.Array, log_a_BTH: jax.Array, scale_BTHL: jax.Array, *,
    state: LogLinearState | None = None, pos: jax.Array | None = None,
) -> tuple[jax.Array, LogLinearState]:  # fmt: skip
    """One T x T masked product (eq. 5); memory and work are quadratic in T."""
    acc, pos_BT, before = _prepare(q_BTGK, k_BTGK, v_BTHV, log_a_BTH, scale_BTHL, state, pos)
    if q_BTGK.shape[1] == 0:
        return v_BTHV.astype(q_BTGK.dtype), before
    q, k, v, log_a_BTH, scale = _time.clean(pos_BT, q_BTGK, k_BTGK, v_BTHV, log_a_BTH, scale_BTHL)
    log_a_BTH, number_BT = retention._log_decay(log_a_BTH, pos_BT, acc), _numbers(before.count_B, pos_BT)
    y_BTHV = _inside(q, k, v, log_a_BTH, scale, number_BT, pos_BT)
    if state is not None:
        y_BTHV += _from_state(q, before, log_a_BTH, scale, number_BT, pos_BT)
    y_BTHV = _time.select(_time.valid(pos_BT), y_BTHV).astype(q_BTGK.dtype)
    return y_BTHV, _after(k, v, log_a_BTH, before, number_BT, pos_BT)


def chunkwise(
    q_BTGK: jax.Array, k_BTGK: jax.Array, v_BTHV: jax.Array, log_a_BTH: jax.Array, scale_BTHL: jax.Array, *,
    state: LogLinearState | None = None, pos: jax.Array | None = None, chunk: int = 64,
) -> tuple[jax.Array, LogLinearState]:  # fmt: skip
    """The parallel form chunk by chunk, carrying the parts: work is O(T (C + L)), memory linear in T."""
    _, pos_BT, before = _prepare(q_BTGK, k_BTGK, v_BTHV, log_a_BTH, scale_BTHL, state, pos)
    return _time.scan_chunks(parallel, before, (q_BTGK, k_BTGK, v_BTHV, log_a_BTH, scale_BTHL), pos_BT, chunk)


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}
CUT = "affine"


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`."""

    def inputs(key, time) -> tuple[jax.Array, ...]:
        keys = jax.random.split(key, 5)
        q_BTGK, k_BTGK = (jax.random.normal(k, (batch, time, 2, 3), dtype) for k in keys[:2])
        v_BTHV = jax.random.normal(keys[2], (batch, time, 4, 2), dtype)
        log_a_BTH = -jax.nn.softplus(jax.random.normal(keys[3], (batch, time, 4), dtype) - 3)
        return q_BTGK, k_BTGK, v_BTHV, log_a_BTH, jax.nn.softplus(jax.random.normal(keys[4], (batch, time, 4, 6), dtype))

    key_x, key_prefix = jax.random.split(key)
    state = recurrent(*inputs(key_prefix, 27))[1]  # 27 = 16 + 8 + 2 + 1: four parts
    return Example(inputs(key_x, time), {}, {}, state)


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """The hard inputs by name, see `jaxseq.ops.stresses`."""
    base = example(key, batch, time, dtype)
    *qkv, log_a_BTH, scale_BTHL = base.xs
    return stresses(key, base, log_a_BTH.shape, lambda log_a_BTH: base._replace(xs=(*qkv, log_a_BTH, scale_BTHL)))
