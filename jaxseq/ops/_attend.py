"""Softmax attention of queries over keys: the one implementation behind the op `attention` and the attention of encoders.

    y_t = sum_s exp(score_ts - lse_t) v_s,   lse_t = log sum_s exp(score_ts),   over the keys with low_t <= number_s <= high_t

Every key has a number and every query an interval of numbers. Two integers per query and one per key express causality, a window,
packed documents, padding, bidirectional attention, cross-attention, and the slots of a ring buffer in any order.

`attend` also returns lse. With it the results over disjoint sets of keys can be joined (`merge`), and a sink can be added.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxseq import compat
from jaxseq.ops import _time

NEVER = jnp.iinfo(jnp.int32).max


class Keys(NamedTuple):
    """Keys and values. H query heads share G key heads, H / G adjacent ones each. A head's keys are contiguous in memory, as the
    matrix products read them."""

    k_BGSK: jax.Array
    v_BGSV: jax.Array
    number_BS: jax.Array  # int32; -1: visible to no query


class Span(NamedTuple):
    """The numbers of the keys that each query sees: low <= number <= high; none if low > high."""

    low_BT: jax.Array  # int32, >= 0
    high_BT: jax.Array


class Score(NamedTuple):
    """score = bias + cap tanh(scale q . k / cap), without `cap` bias + scale q . k."""

    scale: float
    cap: float | None = None  # Gemma 2 (arXiv:2408.00118, §2)
    bias_BHTS: jax.Array | None = None  # [B or 1, H, T, S]; only without blocks
    drop: Callable[[jax.Array], jax.Array] | None = None  # applied to the weights; only without blocks


def visible(span: Span, number_BS: jax.Array) -> jax.Array:
    """[B, T, S] bool."""
    number_B1S = number_BS[:, None]
    return (number_B1S >= span.low_BT[..., None]) & (number_B1S <= span.high_BT[..., None])


def attend(q_BTHK: jax.Array, keys: Keys, span: Span, score: Score, chunk: int | None = None) -> tuple[jax.Array, jax.Array]:
    """(y [B, T, H, V], lse [B, T, H]), both in the accumulation dtype; a query that sees no key has y = 0 and lse = -inf.

    With `chunk` and T > chunk: blocks of `chunk` queries by blocks of `chunk` keys, as in FlashAttention (Dao et al. 2022,
    arXiv:2205.14135, algorithms 1 and 4): the forward pass is an online softmax (Milakov & Gimelshein 2018, arXiv:1805.02867),
    the backward pass recomputes the scores from lse, so memory is linear in T. Blocks without a visible key are skipped.
    """
    time = q_BTHK.shape[1]
    if chunk is None or time <= chunk:
        return _whole(q_BTHK, keys, span, score)
    if score.bias_BHTS is not None or score.drop is not None:
        raise ValueError("a bias of the scores and dropout of the weights need all scores at once: leave out `chunk`")
    # split_chunks pads its first argument with -1: the number of a key that is visible to no query, the end of an empty span
    k_BSGK, v_BSGV = jnp.swapaxes(keys.k_BGSK, 1, 2), jnp.swapaxes(keys.v_BGSV, 1, 2)
    number_UBC, *kv = _time.split_chunks(chunk, keys.number_BS, k_BSGK, v_BSGV)
    blocks = Keys(jnp.swapaxes(kv[0], 2, 3), jnp.swapaxes(kv[1], 2, 3), number_UBC)
    high_ZBC, low_ZBC, q_ZBCHK = _time.split_chunks(chunk, span.high_BT, span.low_BT, q_BTHK)
    spans = Span(low_ZBC, high_ZBC)
    y_ZBCHV, lse_ZBCH = tuple(_blocks(score, q_ZBCHK, blocks, spans, needed(spans, number_UBC)))
    return _time.join_chunks(y_ZBCHV, time), _time.join_chunks(lse_ZBCH, time)


def _plain_blocks(
    score: Score, q_ZBCHK: jax.Array, blocks: Keys, spans: Span, need_ZU: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`attend` for Z blocks of queries and U blocks of keys: (y_ZBCHV, lse_ZBCH). need_ZU: see `needed`."""
    acc, sizes = _time.accumulation_dtype(q_ZBCHK, blocks.v_BGSV), (blocks.v_BGSV.shape[2], blocks.v_BGSV.shape[4])

    def block(inputs):
        q_BCHK, span, need_U = inputs
        return over_blocks(q_BCHK, span, score, need_U, blocks, lambda block: block, sizes, acc)

    return jax.lax.map(block, (q_ZBCHK, spans, need_ZU))


def _blocks_forward(score: Score, q_ZBCHK, blocks: Keys, spans: Span, need_ZU):
    y_ZBCHV, lse_ZBCH = _plain_blocks(score, q_ZBCHK, blocks, spans, need_ZU)
    return (y_ZBCHV, lse_ZBCH), (q_ZBCHK, blocks, spans, need_ZU, y_ZBCHV, lse_ZBCH)


def _blocks_backward(score: Score, saved, cotangents):
    """A scan over blocks of queries, in it one over blocks of keys: the inner scan sums dq, the outer one carries dk and dv."""
    q_ZBCHK, blocks, spans, need_ZU, y_ZBCHV, lse_ZBCH = saved
    dy_ZBCHV, dlse_ZBCH = cotangents
    inner_ZBCH = jnp.sum(dy_ZBCHV * y_ZBCHV, axis=-1) - dlse_ZBCH

    def queries(dkv_UBGSK, row):
        q_BCHK, span, need_U, *rest = row

        def body(dq_BCHK, block):
            need, keys, dkv_BGSK = block

            def add(dq_BCHK, dkv_BGSK):
                dq, *dkv = _pair_gradients(q_BCHK, keys, span, score, *rest)
                return dq_BCHK + dq, tuple(map(jnp.add, dkv_BGSK, dkv))

            return jax.lax.cond(need, add, lambda *both: both, dq_BCHK, dkv_BGSK)

        dq_BCHK, dkv_UBGSK = jax.lax.scan(body, jnp.zeros(q_BCHK.shape, acc), (need_U, blocks, dkv_UBGSK))
        return dkv_UBGSK, dq_BCHK.astype(q_BCHK.dtype)

    acc = lse_ZBCH.dtype
    start = tuple(jnp.zeros(x.shape, acc) for x in blocks[:2])
    rows = q_ZBCHK, spans, need_ZU, dy_ZBCHV, lse_ZBCH, inner_ZBCH
    dkv_UBGSK, dq_ZBCHK = jax.lax.scan(queries, start, rows)
    dk_UBGSK, dv_UBGSV = (dx.astype(x.dtype) for dx, x in zip(dkv_UBGSK, blocks[:2], strict=True))
    none: Any = np.zeros(blocks.number_BS.shape, jax.dtypes.float0)  # JAX's gradient of integers
    return dq_ZBCHK, Keys(dk_UBGSK, dv_UBGSV, none), None, None


_blocks = jax.custom_vjp(_plain_blocks, nondiff_argnums=(0,))
_blocks.defvjp(_blocks_forward, _blocks_backward)


def _pair_gradients(q_BCHK, keys: Keys, span: Span, score: Score, dy_BCHV, lse_BCH, inner_BCH):
    """(dq_BCHK, dk_BGSK, dv_BGSV) of a block of queries and one of keys. With p = exp(score - lse):

    dv = p dy,  d score = p (dy . v - inner),  inner = y . dy - dlse
    """
    acc, (k_BGSK, v_BGSV, _) = lse_BCH.dtype, keys
    grouped = lambda x: x.reshape(*x.shape[:2], k_BGSK.shape[1], -1, *x.shape[3:])  # noqa: E731 # [B, C, H, …] -> [B, C, G, R, …]
    heads_first = lambda x_BCH: jnp.moveaxis(grouped(x_BCH), 1, 3)[..., None]  # noqa: E731
    q_BCGRK, dy_BCGRV = grouped(q_BCHK), grouped(dy_BCHV).astype(v_BGSV.dtype)
    scores_BGRCS = _scores(q_BCHK, keys, span, score, acc)
    p_BGRCS = jnp.exp(scores_BGRCS - heads_first(jnp.where(jnp.isneginf(lse_BCH), 0, lse_BCH)))
    dv_BGSV = compat.einsum("bgrcs,bcgrv->bgsv", p_BGRCS.astype(v_BGSV.dtype), dy_BCGRV, dtype=acc)
    ds_BGRCS = p_BGRCS * (compat.einsum("bcgrv,bgsv->bgrcs", dy_BCGRV, v_BGSV, dtype=acc) - heads_first(inner_BCH))
    if score.cap is not None:
        ds_BGRCS *= jnp.where(p_BGRCS > 0, 1 - jnp.square(scores_BGRCS / score.cap), 0)
    ds_BGRCS = (ds_BGRCS * score.scale).astype(q_BCHK.dtype)
    dq_BCGRK = compat.einsum("bgrcs,bgsk->bcgrk", ds_BGRCS, k_BGSK, dtype=acc)
    return dq_BCGRK.reshape(q_BCHK.shape), compat.einsum("bgrcs,bcgrk->bgsk", ds_BGRCS, q_BCGRK, dtype=acc), dv_BGSV


def needed(spans: Span, number_UBC: jax.Array) -> jax.Array:
    """[Z, U] bool: whether a query of block z (spans [Z, B, C]) may see a key of block u. Only the least and the largest number
    of each block are compared.

    This is computed for all blocks at once: a batch over several devices then needs one reduction, not one per pair of blocks.
    """
    rows_first = (jnp.moveaxis(x, 1, 0) for x in (spans.low_BT, spans.high_BT, number_UBC))
    return jnp.any(needed_by_row(*rows_first), axis=0)


def needed_by_row(low_BZC: jax.Array, high_BZC: jax.Array, number_BUC: jax.Array) -> jax.Array:
    """`needed` [B, Z, U] for each row, from blocks of spans and of keys' numbers."""
    low_BZ = jnp.min(jnp.where(low_BZC <= high_BZC, low_BZC, NEVER), axis=2)
    high_BZ, newest_BU = jnp.max(high_BZC, axis=2), jnp.max(number_BUC, axis=2)
    oldest_BU = jnp.min(jnp.where(number_BUC < 0, NEVER, number_BUC), axis=2)
    return (newest_BU[:, None] >= low_BZ[:, :, None]) & (oldest_BU[:, None] <= high_BZ[:, :, None])


def over_blocks(
    q_BCHK: jax.Array, span: Span, score: Score, need_U: jax.Array, blocks: Any, keys_of: Callable,
    sizes: tuple[int, int], acc: DTypeLike,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """`attend` over blocks of keys, one after another; scores are held for one block at a time.

    blocks: scanned; keys_of(block) -> Keys. need_U: a block is skipped where it is False. sizes: (G, V).
    """
    batch, time, heads, _ = q_BCHK.shape
    kv_heads, value_size = sizes

    def add(carry, block):
        top, total, y_BGRCV = carry
        keys = keys_of(block)
        scores = _scores(q_BCHK, keys, span, score, acc)
        new_top = jax.lax.stop_gradient(jnp.maximum(top, jnp.max(scores, axis=-1)))  # the result does not depend on it
        shift = jnp.where(jnp.isneginf(new_top), 0, new_top)  # no visible key yet: exp(-inf - 0) = 0, not NaN
        p_BGRCS, keep = jnp.exp(scores - shift[..., None]), jnp.exp(top - shift)
        total = keep * total + jnp.sum(p_BGRCS, axis=-1)
        return new_top, total, keep[..., None] * y_BGRCV + _weighted(p_BGRCS, keys.v_BGSV, acc)

    def body(carry, inputs):
        need, block = inputs
        return jax.lax.cond(need, add, lambda carry, _: carry, carry, block), None

    shape = (batch, kv_heads, heads // kv_heads, time)
    start = jnp.full(shape, -jnp.inf, acc), jnp.zeros(shape, acc), jnp.zeros((*shape, value_size), acc)
    (top, total, y_BGRCV), _ = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), start, (need_U, blocks))
    some = total > 0
    lse = jnp.where(some, jnp.where(some, top, 0) + jnp.log(jnp.where(some, total, 1)), -jnp.inf)
    return _heads_last(y_BGRCV / jnp.where(some, total, 1)[..., None]), _heads_last(lse)


def merge(*parts: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The results (y, lse) of `attend` over disjoint sets of keys, as one result over all of them."""
    y, lse = parts[0]
    for y_more, lse_more in parts[1:]:
        both = jnp.logaddexp(lse, lse_more)
        y = _share(lse, both) * y + _share(lse_more, both) * y_more
        lse = both
    return y, lse


def _share(lse, both) -> jax.Array:
    """exp(lse - both) [..., 1]; 0 where both are -inf."""
    none = jnp.isneginf(both)
    return jnp.where(none, 0, jnp.exp(lse - jnp.where(none, 0, both)))[..., None]


def with_sink(y_BTHV: jax.Array, lse_BTH: jax.Array, sink_H: jax.Array | None) -> jax.Array:
    """y with one more key per head, of score `sink_H` and value 0 (gpt-oss; Xiao et al. 2023, arXiv:2309.17453); None: y."""
    return y_BTHV if sink_H is None else y_BTHV * jax.nn.sigmoid(lse_BTH - sink_H.astype(lse_BTH.dtype))[..., None]


def _whole(q_BTHK, keys: Keys, span: Span, score: Score):
    acc = _time.accumulation_dtype(q_BTHK, keys.v_BGSV)
    scores = _scores(q_BTHK, keys, span, score, acc)
    if scores.shape[-1] == 0:
        shape = (*q_BTHK.shape[:3], keys.v_BGSV.shape[3])
        return jnp.zeros(shape, acc), jnp.full(shape[:3], -jnp.inf, acc)
    some_B11T1 = jnp.any(visible(span, keys.number_BS), axis=2)[:, None, None, :, None]
    scores = jnp.where(some_B11T1, scores, 0)  # an empty softmax has NaN gradients
    p_BGRTS = jax.nn.softmax(scores, axis=-1)
    p_BGRTS = p_BGRTS if score.drop is None else score.drop(p_BGRTS)
    y_BGRTV = jnp.where(some_B11T1, _weighted(p_BGRTS, keys.v_BGSV, acc), 0)
    lse = jnp.where(some_B11T1[..., 0], jax.nn.logsumexp(scores, axis=-1), -jnp.inf)
    return _heads_last(y_BGRTV), _heads_last(lse)


def _scores(q_BTHK, keys: Keys, span: Span, score: Score, acc):
    """[B, G, R, T, S] scores, -inf where not visible; R = H / G query heads share a key head."""
    batch, time, heads, size = q_BTHK.shape
    kv_heads = keys.k_BGSK.shape[1]
    q_BTGRK = q_BTHK.reshape(batch, time, kv_heads, heads // kv_heads, size)
    scores = compat.einsum("btgrk,bgsk->bgrts", q_BTGRK, keys.k_BGSK, dtype=acc) * score.scale
    if score.cap is not None:
        scores = score.cap * jnp.tanh(scores / score.cap)
    if score.bias_BHTS is not None:
        scores += score.bias_BHTS.reshape(score.bias_BHTS.shape[0], kv_heads, heads // kv_heads, *scores.shape[3:]).astype(acc)
    return jnp.where(visible(span, keys.number_BS)[:, None, None], scores, -jnp.inf)


def _weighted(p_BGRTS, v_BGSV, acc):
    return compat.einsum("bgrts,bgsv->bgrtv", p_BGRTS.astype(v_BGSV.dtype), v_BGSV, dtype=acc)


def _heads_last(x_BGRT):
    """[B, G, R, T, ...] -> [B, T, H, ...]."""
    x = jnp.moveaxis(x_BGRT, 3, 1)
    return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3], *x.shape[4:])
