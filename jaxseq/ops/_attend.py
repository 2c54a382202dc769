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


def _plain_blocks(score: Score, q_ZBCHK: jax.Array, blocks: Keys, spans: Span, need_ZU: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`attend` for Z blocks of queries and U blocks of keys: (y_ZBCHV, lse_ZBCH). need_ZU: see `needed`."""
    acc, sizes = _time.accumulation_dtype(q_ZBCHK, blocks.v_BGSV), (blocks.v_BGSV.shape[2], blocks.v_BGSV.shape[4])
    turned = blocks._replace(k_BGSK=_turned(blocks.k_BGSK))  # as the products read them, once and not for every pair of blocks

    def block(inputs):
        q_BCHK, span, need_U = inputs
        keys_of = lambda block: block._replace(k_BGSK=_turned(block.k_BGSK))  # noqa: E731
        return over_blocks(q_BCHK, span, score, need_U, turned, keys_of, sizes, acc)

    return jax.lax.map(block, (q_ZBCHK, spans, need_ZU))


def _turned(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, -1, -2)


def _blocks_forward(score: Score, q_ZBCHK, blocks: Keys, spans: Span, need_ZU):
    y_ZBCHV, lse_ZBCH = _plain_blocks(score, q_ZBCHK, blocks, spans, need_ZU)
    return (y_ZBCHV, lse_ZBCH), (q_ZBCHK, blocks, spans, need_ZU, y_ZBCHV, lse_ZBCH)


def _blocks_backward(score: Score, saved, cotangents):
    """A scan over blocks of queries, in it one over blocks of keys: the inner scan sums dq, the outer one carries dk and dv."""
    q_ZBCHK, blocks, spans, need_ZU, y_ZBCHV, lse_ZBCH = saved
    dy_ZBCHV, dlse_ZBCH = cotangents
    inner_ZBCH = jnp.sum(dy_ZBCHV * y_ZBCHV, axis=-1) - dlse_ZBCH
    acc, (k_UBGSK, v_UBGSV, number_UBS) = lse_ZBCH.dtype, blocks
    key_blocks = number_UBS, k_UBGSK, _turned(k_UBGSK), _turned(v_UBGSV)

    def queries(dkv_UBGKS, row):
        span, need_U, *arrays = row
        arrays = _Queries.of(k_UBGSK.shape[2], v_UBGSV.dtype, *arrays)

        def body(dq_BGIK, block):
            need, keys, dkv_BGKS = block

            def add(dq_BGIK, dkv_BGKS):
                dq, *dkv = _pair_gradients(arrays, span, score, *keys)
                return dq_BGIK + dq, tuple(map(jnp.add, dkv_BGKS, dkv))

            return jax.lax.cond(need, add, lambda *both: both, dq_BGIK, dkv_BGKS)

        start = jnp.zeros(_turned(arrays.q_BGKI).shape, acc)
        dq_BGIK, dkv_UBGKS = jax.lax.scan(body, start, (need_U, key_blocks, dkv_UBGKS))
        return dkv_UBGKS, _heads_last(dq_BGIK.reshape(arrays.q_BGRCK.shape)).astype(q_ZBCHK.dtype)

    start = tuple(jnp.zeros(_turned(x).shape, acc) for x in blocks[:2])
    rows = spans, need_ZU, q_ZBCHK, dy_ZBCHV, lse_ZBCH, inner_ZBCH
    dkv_UBGKS, dq_ZBCHK = jax.lax.scan(queries, start, rows)
    dk_UBGSK, dv_UBGSV = (_turned(dx).astype(x.dtype) for dx, x in zip(dkv_UBGKS, blocks[:2], strict=True))
    none: Any = np.zeros(number_UBS.shape, jax.dtypes.float0)  # JAX's gradient of integers
    return dq_ZBCHK, Keys(dk_UBGSK, dv_UBGSV, none), None, None


_blocks = jax.custom_vjp(_plain_blocks, nondiff_argnums=(0,))
_blocks.defvjp(_blocks_forward, _blocks_backward)


class _Queries(NamedTuple):
    """What the backward pass reads of a block of queries; I = R C. Both orders of q and dy are stored, so that no product of
    `_pair_gradients` transposes an operand: XLA copies a transposed operand of a batched product on CPU."""

    q_BGRCK: jax.Array
    q_BGKI: jax.Array
    dy_BGIV: jax.Array
    dy_BGVI: jax.Array
    lse_BGI: jax.Array
    inner_BGI: jax.Array  # y . dy - dlse

    @classmethod
    def of(cls, kv_heads: int, dtype: DTypeLike, q_BCHK, dy_BCHV, lse_BCH, inner_BCH) -> "_Queries":
        """dtype: that of the values."""
        q_BGRCK, lse_BCH = grouped(q_BCHK, kv_heads), jnp.where(jnp.isneginf(lse_BCH), 0, lse_BCH)
        arrays = q_BGRCK, *(grouped(x, kv_heads) for x in (dy_BCHV.astype(dtype), lse_BCH, inner_BCH))
        q_BGIK, dy_BGIV, lse_BGI, inner_BGI = map(_rows, arrays)
        return cls(q_BGRCK, _turned(q_BGIK), dy_BGIV, _turned(dy_BGIV), lse_BGI, inner_BGI)


def _pair_gradients(queries: _Queries, span: Span, score: Score, number_BS, k_BGSK, k_BGKS, v_BGVS):
    """(dq_BGIK, dk_BGKS, dv_BGVS) of a block of queries and one of keys. With p = exp(score - lse):

    dv = p dy,  d score = p (dy . v - inner)
    """
    q_BGRCK, q_BGKI, dy_BGIV, dy_BGVI, lse_BGI, inner_BGI = queries
    acc = lse_BGI.dtype
    scores_BGRCS = _scores(q_BGRCK, Keys(_turned(k_BGKS), _turned(v_BGVS), number_BS), span, score, acc)
    scores_BGIS = scores_BGRCS.reshape(*lse_BGI.shape, -1)
    p_BGIS = jnp.exp(scores_BGIS - lse_BGI[..., None])
    dv_BGVS = compat.einsum("bgvi,bgis->bgvs", dy_BGVI, p_BGIS.astype(v_BGVS.dtype), dtype=acc)
    ds_BGIS = p_BGIS * (compat.einsum("bgiv,bgvs->bgis", dy_BGIV, v_BGVS, dtype=acc) - inner_BGI[..., None])
    if score.cap is not None:
        ds_BGIS *= jnp.where(p_BGIS > 0, 1 - jnp.square(scores_BGIS / score.cap), 0)
    ds_BGIS = (ds_BGIS * score.scale).astype(q_BGRCK.dtype)
    dq_BGIK = compat.einsum("bgis,bgsk->bgik", ds_BGIS, k_BGSK, dtype=acc)
    return dq_BGIK, compat.einsum("bgki,bgis->bgks", q_BGKI, ds_BGIS, dtype=acc), dv_BGVS


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
    kv_heads, value_size = sizes
    q_BGRCK = grouped(q_BCHK, kv_heads)

    def add(carry, block):
        top, total, y_BGRCV = carry
        keys = keys_of(block)
        scores = _scores(q_BGRCK, keys, span, score, acc)
        new_top = jax.lax.stop_gradient(jnp.maximum(top, jnp.max(scores, axis=-1)))  # the result does not depend on it
        shift = jnp.where(jnp.isneginf(new_top), 0, new_top)  # no visible key yet: exp(-inf - 0) = 0, not NaN
        p_BGRCS, keep = jnp.exp(scores - shift[..., None]), jnp.exp(top - shift)
        total = keep * total + jnp.sum(p_BGRCS, axis=-1)
        return new_top, total, keep[..., None] * y_BGRCV + _weighted(p_BGRCS, keys.v_BGSV, acc)

    def body(carry, inputs):
        need, block = inputs
        return jax.lax.cond(need, add, lambda carry, _: carry, carry, block), None

    shape = q_BGRCK.shape[:4]
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
    scores = _scores(grouped(q_BTHK, keys.k_BGSK.shape[1]), keys, span, score, acc)
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


def _scores(q_BGRTK, keys: Keys, span: Span, score: Score, acc):
    """[B, G, R, T, S] scores, -inf where not visible; R = H / G query heads share a key head."""
    scores = compat.einsum("bgik,bgsk->bgis", _rows(q_BGRTK), keys.k_BGSK, dtype=acc) * score.scale
    scores = scores.reshape(*q_BGRTK.shape[:4], scores.shape[3])
    if score.cap is not None:
        scores = score.cap * jnp.tanh(scores / score.cap)
    if score.bias_BHTS is not None:
        scores += score.bias_BHTS.reshape(score.bias_BHTS.shape[0], *scores.shape[1:]).astype(acc)
    return jnp.where(visible(span, keys.number_BS)[:, None, None], scores, -jnp.inf)


def _weighted(p_BGRTS, v_BGSV, acc):
    y_BGIV = compat.einsum("bgis,bgsv->bgiv", _rows(p_BGRTS).astype(v_BGSV.dtype), v_BGSV, dtype=acc)
    return y_BGIV.reshape(*p_BGRTS.shape[:4], v_BGSV.shape[3])


def _rows(x_BGRT: jax.Array) -> jax.Array:
    """[B, G, R, T, ...] -> [B, G, I, ...], I = R T. A product with both axes copies the keys transposed on CPU."""
    return x_BGRT.reshape(*x_BGRT.shape[:2], x_BGRT.shape[2] * x_BGRT.shape[3], *x_BGRT.shape[4:])


def grouped(x_BTH: jax.Array, kv_heads: int) -> jax.Array:
    """[B, T, H, ...] -> [B, G, R, T, ...]."""
    x = x_BTH.reshape(*x_BTH.shape[:2], kv_heads, x_BTH.shape[2] // kv_heads, *x_BTH.shape[3:])
    return jnp.moveaxis(x, 1, 3)


def _heads_last(x_BGRT):
    """[B, G, R, T, ...] -> [B, T, H, ...]."""
    x = jnp.moveaxis(x_BGRT, 3, 1)
    return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3], *x.shape[4:])
