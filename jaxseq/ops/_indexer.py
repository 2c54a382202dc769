"""The lightning indexer of DeepSeek Sparse Attention (DeepSeek-AI 2025, arXiv:2512.02556, §2.1): which tokens a query attends to.

    I_ts = sum_i w_ti relu(q_ti . k_s)    (eq. 1)

over I small heads that share one key per token. `select` gives each query the tokens of its document with the largest I, for
`block_sparse_attention` with blocks of one token. `divergence` is what the indexer is trained by: the choice has no gradient.

Keys of earlier calls are stored as those of `attention` are, in slots of the same numbers; see `ring`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy

from jaxseq import compat
from jaxseq.ops import _attend, _time, attention
from jaxseq.ops._attend import Span
from jaxseq.ops.attention import AttentionState
from jaxseq.ops.block_sparse_attention import finder, taken, weights

SPARE_BITS = 8  # of the significand, by which scores are rounded before they are compared


class Indexer(NamedTuple):
    """What the scores of T tokens are computed from."""

    q_BTIK: jax.Array
    k_BTK: jax.Array
    weight_BTI: jax.Array


def ring(k_BSK: jax.Array, count_B: jax.Array) -> AttentionState:
    """The stored keys as the state of `attention`, with themselves for values. count_B: tokens of the document so far."""
    return AttentionState(k_BSK[:, None], k_BSK[:, None], count_B)


def next_keys(k_BSK: jax.Array, count_B: jax.Array, k_BTK: jax.Array, pos_BT: jax.Array) -> jax.Array:
    """The stored keys [B, S, K] after T >= 1 tokens."""
    k_BT1K = k_BTK[:, :, None]
    return attention.next_state(ring(k_BSK, count_B), k_BT1K, k_BT1K, pos_BT).k_BGSK[:, 0]


def _gather(state: AttentionState | None, k_BTK, pos_BT):
    """(Span of each token, its `low` 0 at padding; keys [B, S, K] of the state and of this call; their numbers)."""
    k_BT1K = k_BTK[:, :, None]
    span, keys = attention.gather(state, k_BT1K, k_BT1K, pos_BT, None)
    return Span(_time.select(_time.valid(pos_BT), span.low_BT), span.high_BT), keys.k_BGSK[:, 0], keys.number_BS


def _weighted(products_BCIS: jax.Array, weight_BCI: jax.Array) -> jax.Array:
    return jnp.sum(jax.nn.relu(products_BCIS) * weight_BCI[..., None], axis=2)


def select(
    indexer: Indexer, count: int, *, state: AttentionState | None = None, pos: jax.Array | None = None, chunk: int = 128
) -> jax.Array:
    """The tokens [B, T, A] int32 with the largest scores, as numbers in the query's document, -1 for none (eq. 2).

    A is `count`, or the number of keys (the state's slots and T) if that is smaller.

    Of equal scores the earlier token is chosen. Scores are rounded to eight bits less than their dtype has, so that equal ones
    remain equal where their sums are computed in different orders. `chunk` queries at a time limit the memory.
    """
    pos_BT, time = _time.positions(pos, indexer.q_BTIK), indexer.q_BTIK.shape[1]
    if time == 0:
        return jnp.zeros((pos_BT.shape[0], 0, count), jnp.int32)
    acc = _time.accumulation_dtype(*indexer)
    q_BTIK, k_BTK, weight_BTI = _time.clean(pos_BT, *jax.lax.stop_gradient(indexer))
    span, k_BSK, number_BS = _gather(jax.lax.stop_gradient(state), k_BTK, pos_BT)
    kept = jnp.finfo(acc)

    def queries(row):
        high_BC, low_BC, q_BCIK, weight_BCI = row
        products_BCIS = compat.einsum("bcik,bsk->bcis", q_BCIK, k_BSK, dtype=acc)
        scores_BCS = jax.lax.reduce_precision(_weighted(products_BCIS, weight_BCI), kept.nexp, kept.nmant - SPARE_BITS)
        scores_BCS = jnp.where(_attend.visible(Span(low_BC, high_BC), number_BS), scores_BCS, -jnp.inf)
        top_BCA, place_BCA = jax.lax.top_k(scores_BCS, min(count, scores_BCS.shape[2]))
        number_BCA = jnp.take_along_axis(number_BS[:, None], place_BCA, axis=2)
        return jnp.where(jnp.isneginf(top_BCA), -1, number_BCA - low_BC[..., None])

    rows = _time.split_chunks(min(chunk, time), span.high_BT, span.low_BT, q_BTIK, weight_BTI)
    return _time.join_chunks(jax.lax.map(queries, rows), time)


def divergence(
    indexer: Indexer, index_BTA: jax.Array, q_BTHK: jax.Array, k_BTGK: jax.Array, *, scale: float,
    state: AttentionState | None = None, main: AttentionState | None = None, pos: jax.Array | None = None, chunk: int = 32,
) -> jax.Array:  # fmt: skip
    """KL(p_t || softmax(I_t)) [B, T] over the chosen tokens, 0 at padding (eq. 4); only `indexer` has a gradient.

    p: the attention's probabilities softmax(scale q_t . k_s), averaged over its H heads. main: the state of the attention. With
    all tokens chosen it is the loss of the paper's dense warm-up (eq. 3). Memory is that of `chunk` queries.
    """
    pos_BT, time = _time.positions(pos, q_BTHK), q_BTHK.shape[1]
    if time == 0:
        return jnp.zeros(pos_BT.shape, _time.accumulation_dtype(*indexer))
    q_BTHK, k_BTGK, main, state = jax.lax.stop_gradient((q_BTHK, k_BTGK, main, state))
    q_BTHK, k_BTGK, q_BTIK, k_BTK, weight_BTI = _time.clean(pos_BT, q_BTHK, k_BTGK, *indexer)
    acc, groups = _time.accumulation_dtype(q_BTHK, *indexer), k_BTGK.shape[2]
    span, own_BSK, number_BS = _gather(state, k_BTK, pos_BT)
    main_BGSK = attention.gather(main, k_BTGK, k_BTGK, pos_BT, None)[1].k_BGSK
    count_B = jnp.zeros(pos_BT.shape[:1], jnp.int32) if state is None else state.count_B
    find = finder(count_B, number_BS.shape[1] - time)

    def queries(row):
        high_BC, low_BC, index_BCA, q_BCHK, q_BCIK, weight_BCI = row
        place_BCA, there_BCA = find(low_BC[..., None] + index_BCA)
        mask_BCA = (index_BCA >= 0) & (high_BC >= 0)[..., None] & there_BCA
        place_B1CA = jnp.where(mask_BCA, place_BCA, 0)[:, None]
        q_BGRCK, k_BGCAK = _attend.grouped(q_BCHK, groups), taken(main_BGSK, place_B1CA)
        scores_BGRCA = compat.einsum("bgrck,bgcak->bgrca", q_BGRCK, k_BGCAK, dtype=acc) * scale
        p_BCA = jnp.mean(weights(scores_BGRCA, mask_BCA[:, None, None]), axis=(1, 2))
        products_BCIA = compat.einsum("bcik,bcak->bcia", q_BCIK, taken(own_BSK[:, None], place_B1CA)[:, 0], dtype=acc)
        logits_BCA = jnp.where(mask_BCA, _weighted(products_BCIA, weight_BCI), jnp.finfo(acc).min / 2)
        return jnp.sum(xlogy(p_BCA, p_BCA) - p_BCA * jax.nn.log_softmax(logits_BCA, axis=-1), axis=-1)

    rows = _time.split_chunks(min(chunk, time), span.high_BT, span.low_BT, index_BTA, q_BTHK, q_BTIK, weight_BTI)
    return _time.join_chunks(jax.lax.map(jax.checkpoint(queries, prevent_cse=False), rows), time)
