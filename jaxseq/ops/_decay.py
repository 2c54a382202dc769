"""Cumulative decays, shared by retention, the delta rules and WKV-5, -6 and -7.

The product of a query and an earlier key is weighted by e^{sum of the log-decays between them}. Each sum adds only the tokens
between the two. A difference of two cumulative sums would be simpler but suffers from cancellation: one log-decay of -1e4
leaves errors of 1e-3 in all later differences.

With one decay per key channel, the weight is split into a factor of the query and a factor of the key, so that scores are a
matrix product. Both factors are at most 1: they are the decay from the key to the start of the query's block of 16 tokens, and
from there to the query. Inside a block each weight is computed separately (Yang et al. 2024, arXiv:2312.06635, §4.2, use the same
scheme in two levels).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq.ops import _time

BLOCK = 16


def prepare(
    init_state: Callable, v_BTHV: jax.Array, like_r: Sequence[jax.Array], state: Any, pos: jax.Array | None
) -> tuple[Any, jax.Array, Any]:
    """(accumulation dtype, pos_BT, state) of a call; like_r: the arrays of shape [B, T, H, K], r first, then log_w."""
    r_BTHK = like_r[0]
    chex.assert_rank([r_BTHK, v_BTHV], 4)
    chex.assert_equal_shape(like_r)
    chex.assert_equal_shape_prefix([r_BTHK, v_BTHV], 3)
    pos_BT = _time.positions(pos, r_BTHK)
    chex.assert_shape(pos_BT, r_BTHK.shape[:2])
    acc = _time.accumulation_dtype(r_BTHK, v_BTHV, like_r[1])
    sizes = (r_BTHK.shape[0], *r_BTHK.shape[2:], v_BTHV.shape[3])
    state = init_state(*sizes, acc) if state is None else state
    chex.assert_shape(state.S_BHKV, sizes)
    return acc, pos_BT, state


def upto(log_T: jax.Array) -> jax.Array:
    """Sum of the log-decays of the tokens up to and including t, over axis 0."""
    return jnp.cumsum(log_T, axis=0)


def after(log_T: jax.Array) -> jax.Array:
    """Sum of the log-decays of the tokens after t, over axis 0."""
    return jnp.concatenate([jax.lax.cumsum(log_T[1:], axis=0, reverse=True), jnp.zeros_like(log_T[:1])])


def _between(log_T: jax.Array) -> jax.Array:
    """`between` by one cumulative sum for each s."""
    time = len(log_T)
    counts_TS = jnp.tri(time, k=-1, dtype=bool)
    return jnp.cumsum(_time.select(counts_TS, jnp.broadcast_to(log_T[:, None], (time, *log_T.shape))), axis=0)


def between(log_T: jax.Array) -> jax.Array:
    """[T, S, ...]: sum of log_T [T, ...] over s < i <= t; the value is unspecified where s > t.

    Adds the sum from s to the start of t's block and the sum from there to t, so that most terms are shared between pairs.
    """
    time = len(log_T)
    size = 1 << ((time - 1).bit_length() + 1) // 2
    if time <= max(size, 4):
        return _between(log_T)
    log_ZC = jnp.pad(log_T, ((0, -time % size),) + ((0, 0),) * (log_T.ndim - 1)).reshape(-1, size, *log_T.shape[1:])
    upto_ZC, near_ZCC, total_Z = jax.vmap(upto)(log_ZC), jax.vmap(_between)(log_ZC), jnp.sum(log_ZC, axis=1)
    blocks_ZU = jnp.concatenate([jnp.zeros_like(total_Z)[None], _between(total_Z)[:-1]])  # sums over the chunks between
    then_ZUC = blocks_ZU[:, :, None] + jax.vmap(after)(log_ZC)[None]
    own_ZU = jnp.eye(len(log_ZC), dtype=bool)[:, None, :, None]
    sums_ZCUC = jnp.where(
        _time.expand(own_ZU, near_ZCC[:, :, None]), near_ZCC[:, :, None], upto_ZC[:, :, None, None] + then_ZUC[:, None]
    )
    return sums_ZCUC.reshape(len(log_ZC) * size, len(log_ZC) * size, *log_T.shape[1:])[:time, :time]


class Decays(NamedTuple):
    """Decays inside a chunk, one per key channel; the tuples have one entry per block of BLOCK tokens."""

    upto_BTHK: jax.Array  # from the start of the chunk up to and including t
    before_BTHK: jax.Array  # from the start of the chunk up to t, excluding t
    after_BTHK: jax.Array  # after t up to the end of the chunk
    near_BTSHK: tuple[jax.Array, ...]  # after s up to and including t, both in the block; 0 where s > t
    into_BTHK: tuple[jax.Array, ...]  # from the start of the block up to and including t
    then_BSHK: tuple[jax.Array, ...]  # after s up to the start of the block, for every s before it


def decays(log_w_BTHK: jax.Array, pos_BT: jax.Array, acc: DTypeLike) -> Decays:
    """The decays of a chunk, in dtype `acc`. Padding and document starts have decay 1; resets are applied by masks."""
    log_w_BTHK = _time.select(pos_BT > _time.START, log_w_BTHK.astype(acc))
    blocks = [log_w_BTHK[:, start : start + BLOCK] for start in range(0, log_w_BTHK.shape[1], BLOCK)]
    then = [log_w_BTHK[:, :0]]
    for block in blocks[:-1]:
        then.append(jnp.concatenate([then[-1] + jnp.sum(block, axis=1, keepdims=True), jax.vmap(after)(block)], axis=1))

    def near(log_THK):
        return jnp.exp(_time.select(jnp.tri(len(log_THK), dtype=bool), between(log_THK), -jnp.inf))

    upto_BTHK = jnp.exp(jax.vmap(upto)(log_w_BTHK))
    return Decays(
        upto_BTHK=upto_BTHK,
        before_BTHK=jnp.concatenate([jnp.ones_like(upto_BTHK[:, :1]), upto_BTHK[:, :-1]], axis=1),
        after_BTHK=jnp.exp(jax.vmap(after)(log_w_BTHK)),
        near_BTSHK=tuple(jax.vmap(near)(block) for block in blocks),
        into_BTHK=tuple(jnp.exp(jax.vmap(upto)(block)) for block in blocks),
        then_BSHK=tuple(jnp.exp(x) for x in then),
    )


class HeadDecays(NamedTuple):
    """Decays inside a chunk, one per head."""

    upto_BTHK: jax.Array  # as in Decays, K = 1
    after_BTHK: jax.Array
    between_BHTS: jax.Array  # after s up to and including t; 0 where s > t


def head_decays(log_w_BTH: jax.Array, pos_BT: jax.Array, acc: DTypeLike) -> HeadDecays:
    """`decays` for one log-decay per head."""
    log_w_BTH = _time.select(pos_BT > _time.START, log_w_BTH.astype(acc))
    sums_BHTS = jax.vmap(jax.vmap(between))(jnp.moveaxis(log_w_BTH, 1, 2))
    return HeadDecays(
        upto_BTHK=jnp.exp(jax.vmap(upto)(log_w_BTH))[..., None],
        after_BTHK=jnp.exp(jax.vmap(after)(log_w_BTH))[..., None],
        between_BHTS=jnp.exp(jnp.where(jnp.tri(sums_BHTS.shape[2], dtype=bool), sums_BHTS, -jnp.inf)),
    )


def products(x_BTHK: jax.Array, y_BTHK: jax.Array, decays: Decays | HeadDecays, mask_BTS: jax.Array) -> jax.Array:
    """[B, H, T, S]: sum_K x_t y_s decay(s < i <= t) where the mask is true, else 0; the mask must be false for s > t."""
    if isinstance(decays, HeadDecays):
        return jnp.where(mask_BTS[:, None], jnp.einsum("bthk,bshk->bhts", x_BTHK, y_BTHK) * decays.between_BHTS, 0)
    rows, start, time = [], 0, x_BTHK.shape[1]
    for near, into, then in zip(decays.near_BTSHK, decays.into_BTHK, decays.then_BSHK, strict=True):
        stop = start + into.shape[1]
        x = x_BTHK[:, start:stop]
        far = jnp.einsum("bthk,bshk->bhts", x * into, y_BTHK[:, :start] * then)
        own = jnp.einsum("bthk,bshk,btshk->bhts", x, y_BTHK[:, start:stop], near)
        rows.append(jnp.concatenate([far, own, jnp.zeros((*own.shape[:3], time - stop), own.dtype)], axis=3))
        start = stop
    return jnp.where(mask_BTS[:, None], jnp.concatenate(rows, axis=2), 0)


def products_before(x_BTHK: jax.Array, y_BTHK: jax.Array, decays: Decays, mask_BTS: jax.Array) -> jax.Array:
    """`products` with decay(s < i < t); the mask must be false for s >= t."""
    next_BTHK, next_BTS = (jnp.concatenate([z[:, 1:], jnp.zeros_like(z[:, :1])], axis=1) for z in (x_BTHK, mask_BTS))
    scores_BHTS = products(next_BTHK, y_BTHK, decays, next_BTS)
    return jnp.concatenate([jnp.zeros_like(scores_BHTS[:, :, :1]), scores_BHTS[:, :, :-1]], axis=2)


def before(seg_BT: jax.Array) -> jax.Array:
    """[B, T, S] bool: s is an earlier token of t's document."""
    time = seg_BT.shape[1]
    return (seg_BT[:, :, None] == seg_BT[:, None]) & jnp.tril(jnp.ones((time, time), bool), -1)


def chunk_parallel(totals: Any, combine: Callable, state: Any, apply: Callable) -> tuple[Any, Any]:
    """(state before each chunk [Z, ...], final state), from the summaries of the chunks by an associative scan."""
    prefix = jax.lax.associative_scan(combine, totals)
    after = jax.vmap(lambda total: apply(total, state))(prefix)
    front = jax.tree.map(lambda s, a: jnp.concatenate([s[None], a[:-1]]), state, after)
    return front, jax.tree.map(lambda a: a[-1], after)
