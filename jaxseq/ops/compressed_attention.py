"""Causal softmax attention to the means of blocks of keys and values, and the choice of blocks by their scores (Native Sparse
Attention, Yuan et al. 2025, arXiv:2502.11089, eq. 7 to 10).

    K_i, V_i = means of k and v over the tokens i block to (i + 1) block - 1 of the document
    y_t = sum_i softmax_i(scale q_t . K_i) V_i,   i over the blocks that end at t or before

Before the end of the first block y = 0. The paper compresses blocks, which may overlap, by a learned map; here they are
disjoint and the map is the mean, as in flash-linear-attention. As in `attention`, H query heads share G key/value heads; `scale`
is 1 / sqrt(K) by default.

`select` chooses blocks for `block_sparse_attention` from the state before a call and the call's queries and keys.

State: the means of the document's complete blocks in the ring buffer of `attention`, a slot per block, and the sums over the
tokens of the incomplete block, all in the accumulation dtype, as are scores and sums.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq import compat
from jaxseq.ops import _attend, _time, attention
from jaxseq.ops._attend import Keys, Score, Span, attend
from jaxseq.ops._example import Example, stresses
from jaxseq.ops.attention import AttentionState


class CompressedAttentionState(NamedTuple):
    """The blocks of the document so far."""

    blocks: AttentionState  # means of complete blocks; its count is the number of complete blocks
    k_BGK: jax.Array  # sums over the tokens of the incomplete block
    v_BGV: jax.Array
    filled_B: jax.Array  # int32: tokens of the incomplete block


def init_state(
    batch: int, context: int, kv_heads: int, key_size: int, value_size: int, block: int, dtype: DTypeLike = jnp.float32
) -> CompressedAttentionState:
    """The empty state for documents of `context` tokens, at least in float32."""
    acc = jnp.promote_types(dtype, jnp.float32)
    blocks = attention.init_state(batch, max(context // block, 1), kv_heads, key_size, value_size, acc)
    k_BGK, v_BGV = (jnp.zeros((batch, kv_heads, size), acc) for size in (key_size, value_size))
    return CompressedAttentionState(blocks, k_BGK, v_BGV, jnp.zeros((batch,), jnp.int32))


def _prepare(q_BTHK, k_BTGK, v_BTGV, state, pos, block, scale):
    chex.assert_scalar_positive(block)
    blocks = None if state is None else state.blocks
    scale, q_BTHK, k_BTGK, v_BTGV, pos_BT = attention._prepare(q_BTHK, k_BTGK, v_BTGV, blocks, pos, None, scale)
    acc = _time.accumulation_dtype(q_BTHK, k_BTGK, v_BTGV)
    if state is None:
        batch, time, kv_heads, key_size = k_BTGK.shape
        state = init_state(batch, time, kv_heads, key_size, v_BTGV.shape[3], block, acc)
    return scale, state, q_BTHK, k_BTGK.astype(acc), v_BTGV.astype(acc), pos_BT


class _Blocks(NamedTuple):
    """The blocks of a call: those of the state and the U that end in this call."""

    keys: Keys  # means; numbered consecutively from the state's count, without restarting at documents
    span: Span  # of each token: the blocks of its document that have ended
    state: CompressedAttentionState  # after the call
    n_BT: jax.Array  # index of each token in its document


def _compress(state: CompressedAttentionState, k_BTGK, v_BTGV, pos_BT, block: int) -> _Blocks:
    """T >= 1."""
    time, valid_BT = pos_BT.shape[1], _time.valid(pos_BT)
    count_B = state.blocks.count_B * block + state.filled_B
    n_BT, first_B = attention.indices(count_B, pos_BT)
    ends_BT = valid_BT & ((n_BT + 1) % block == 0)
    ended_BT = jnp.cumsum(ends_BT, axis=1, dtype=jnp.int32)
    most = (time + block - 1) // block
    t_BU = jnp.sort(jnp.where(ends_BT, jnp.arange(time), time), axis=1)[:, :most]  # the last token of each block
    there_BU, t_BU = t_BU < time, jnp.minimum(t_BU, time - 1)
    index_BU = jnp.take_along_axis(n_BT, t_BU, axis=1) // block
    pos_BU = jnp.where(there_BU, index_BU, _time.PAD)  # block 0 is START

    within_BUJ = t_BU[..., None] - jnp.arange(block - 1, -1, -1)
    mask_BUJ = (within_BUJ >= 0) & there_BU[..., None]
    earlier_B = ends_BT.any(axis=1) & (jnp.take_along_axis(_time.segments(pos_BT), t_BU[:, :1], axis=1)[:, 0] == 0)
    open_B = jnp.max(jnp.where(_time.last_segment(pos_BT), n_BT + 1, first_B[:, None]), axis=1)  # tokens of the last document
    left_BT = _time.last_segment(pos_BT) & (n_BT >= (open_B // block * block)[:, None])
    same_B = _time.continues(pos_BT) & (open_B // block == state.blocks.count_B)  # the state's incomplete block is not complete

    def means(x_BTGK, sum_BGK):
        taken = jnp.take_along_axis(x_BTGK, jnp.maximum(within_BUJ, 0).reshape(len(pos_BT), -1, 1, 1), axis=1)
        x_BUJGK = taken.reshape(*within_BUJ.shape, *x_BTGK.shape[2:])
        total_BUGK = jnp.sum(_time.select(mask_BUJ, x_BUJGK), axis=2)
        total_BUGK = total_BUGK.at[:, 0].add(_time.select(earlier_B, sum_BGK))  # the first block completes that of the state
        rest_BGK = jnp.sum(_time.select(left_BT, x_BTGK), axis=1) + _time.select(same_B, sum_BGK)
        return total_BUGK / block, rest_BGK

    (k_BUGK, k_BGK), (v_BUGV, v_BGV) = means(k_BTGK, state.k_BGK), means(v_BTGV, state.v_BGV)
    _, keys = attention.gather(state.blocks, k_BUGK, v_BUGV, pos_BU, None)
    high_BT = state.blocks.count_B[:, None] + ended_BT - 1
    span = Span(high_BT + 1 - (n_BT + 1) // block, jnp.where(valid_BT, high_BT, -1))
    after = attention.next_state(state.blocks, k_BUGK, v_BUGV, pos_BU)
    kept_B = _time.continues(pos_BT) | (open_B >= block)
    after = jax.tree.map(lambda x: _time.select(kept_B, x), after)  # a new document without a complete block: empty
    return _Blocks(keys, span, CompressedAttentionState(after, k_BGK, v_BGV, open_B % block), n_BT)


def recurrent(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGV: jax.Array, *, block: int, state: CompressedAttentionState | None = None,
    pos: jax.Array | None = None, scale: float | None = None,
) -> tuple[jax.Array, CompressedAttentionState]:  # fmt: skip
    """One token after another: add it to the sums, store their means at the end of a block, attend to the means."""
    factor, before, *xs, pos_BT = _prepare(q_BTHK, k_BTGK, v_BTGV, state, pos, block, scale)
    if q_BTHK.shape[1] == 0:
        return attention._no_tokens(q_BTHK, v_BTGV), before

    def step(state, q_BHK, k_BGK, v_BGV):
        k_BGK, v_BGV, filled_B = state.k_BGK + k_BGK, state.v_BGV + v_BGV, state.filled_B + 1
        ends_B = filled_B == block
        written = attention._write(state.blocks, k_BGK / block, v_BGV / block)
        choose = lambda new, old: jnp.where(_time.expand(ends_B, new), new, old)  # noqa: E731
        blocks = jax.tree.map(choose, written, state.blocks)
        keys = Keys(blocks.k_BGSK, blocks.v_BGSV, attention._slots(blocks.count_B, blocks.k_BGSK.shape[2]))
        y_B1HV, _ = attend(q_BHK[:, None], keys, attention._latest(blocks.count_B, None), Score(factor))
        k_BGK, v_BGV, filled_B = (_time.select(~ends_B, x) for x in (k_BGK, v_BGV, filled_B))
        return CompressedAttentionState(blocks, k_BGK, v_BGV, filled_B), y_B1HV[:, 0].astype(q_BHK.dtype)

    return _time.scan_time(step, before, xs, pos_BT)


def _all_at_once(q_BTHK, k_BTGK, v_BTGV, state, pos, block, scale, chunk):
    """All tokens against the means of the state and of this call; `chunk`: see `attend`."""
    dtype = q_BTHK.dtype
    scale, before, q_BTHK, k_BTGK, v_BTGV, pos_BT = _prepare(q_BTHK, k_BTGK, v_BTGV, state, pos, block, scale)
    if q_BTHK.shape[1] == 0:
        return attention._no_tokens(q_BTHK, v_BTGV), before
    blocks = _compress(before, k_BTGK, v_BTGV, pos_BT, block)
    y_BTHV, _ = attend(q_BTHK.astype(k_BTGK.dtype), blocks.keys, blocks.span, Score(scale), chunk)
    return attention.finish(y_BTHV, y_BTHV, None, pos_BT, dtype), blocks.state


def parallel(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGV: jax.Array, *, block: int, state: CompressedAttentionState | None = None,
    pos: jax.Array | None = None, scale: float | None = None,
) -> tuple[jax.Array, CompressedAttentionState]:  # fmt: skip
    """The scores of all tokens with all blocks at once."""
    return _all_at_once(q_BTHK, k_BTGK, v_BTGV, state, pos, block, scale, None)


def chunkwise(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGV: jax.Array, *, block: int, state: CompressedAttentionState | None = None,
    pos: jax.Array | None = None, scale: float | None = None, chunk: int = 128,
) -> tuple[jax.Array, CompressedAttentionState]:  # fmt: skip
    """Chunks of `chunk` queries by chunks of `chunk` means with an online softmax; the backward pass recomputes the scores."""
    return _all_at_once(q_BTHK, k_BTGK, v_BTGV, state, pos, block, scale, chunk)


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}
CUT = "ring"


def select(
    q_BTHK: jax.Array, k_BTGK: jax.Array, count: int, *, block: int, state: CompressedAttentionState | None = None,
    pos: jax.Array | None = None, scale: float | None = None, chunk: int = 256,
) -> jax.Array:  # fmt: skip
    """The blocks [B, T, G, count] int32 that each query and key head attends to, -1 for none; they have no gradient.

    First the query's own block, then block 0 and the block before the query's own, then the complete blocks with the largest
    probability softmax_i(scale q_t . K_i), summed over the query heads of a key head (eq. 9 and 10). Of equal ones the first is
    chosen, so the choice does not depend on the form of the ops around it. Chunks of `chunk` queries limit the memory.
    """
    q_BTHK, k_BTGK, state = jax.lax.stop_gradient((q_BTHK, k_BTGK, state))
    if state is not None:  # the values play no part
        state = state._replace(blocks=state.blocks._replace(v_BGSV=state.blocks.k_BGSK), v_BGV=state.k_BGK)
    factor, before, q_BTHK, k_BTGK, _, pos_BT = _prepare(q_BTHK, k_BTGK, k_BTGK, state, pos, block, scale)
    if (time := q_BTHK.shape[1]) == 0:
        return jnp.zeros((*k_BTGK.shape[:3], count), jnp.int32)
    blocks = _compress(before, k_BTGK, k_BTGK, pos_BT, block)
    k_BGSK, _, number_BS = blocks.keys

    def queries(row):
        high_BC, low_BC, own_BC, q_BCHK = row
        span = Span(low_BC, high_BC)
        mask_BCS, index_BCS = _attend.visible(span, number_BS), number_BS[:, None] - low_BC[..., None]
        q_BGRCK = _attend.grouped(q_BCHK.astype(k_BGSK.dtype), k_BGSK.shape[1])
        scores_BGRCS = compat.einsum("bgrck,bgsk->bgrcs", q_BGRCK, k_BGSK, dtype=k_BGSK.dtype) * factor
        p_BGCS = jnp.sum(jax.nn.softmax(jnp.where(mask_BCS[:, None, None], scores_BGRCS, -jnp.inf), axis=-1), axis=2)
        back_BCS = own_BC[..., None] - index_BCS
        first_BCS = (index_BCS == 0) | (back_BCS == 1)
        p_BGCS = jnp.where(first_BCS[:, None], jnp.inf, p_BGCS)
        p_BGCS = jnp.where((mask_BCS & (back_BCS > 0))[:, None], p_BGCS, -1)  # without the own block
        top_BGCA, slot_BGCA = jax.lax.top_k(p_BGCS, min(count - 1, p_BGCS.shape[3]))
        best_BGCA = jnp.take_along_axis(jnp.broadcast_to(index_BCS[:, None], p_BGCS.shape), slot_BGCA, axis=3)
        best_BGCA = jnp.where(top_BGCA < 0, -1, best_BGCA)
        own_BGC1 = jnp.broadcast_to(own_BC[:, None, :, None], (*best_BGCA.shape[:3], 1))
        chosen_BGCA = jnp.concatenate([own_BGC1, best_BGCA], axis=3)
        chosen_BGCA = jnp.pad(chosen_BGCA, ((0, 0),) * 3 + ((0, count - chosen_BGCA.shape[3]),), constant_values=-1)
        return jnp.moveaxis(chosen_BGCA, 1, 2)

    rows = blocks.span.high_BT, blocks.span.low_BT, blocks.n_BT // block, q_BTHK
    index_BTGA = _time.join_chunks(jax.lax.map(queries, _time.split_chunks(min(chunk, time), *rows)), time)
    return _time.select(_time.valid(pos_BT), index_BTGA, -1)


def _inputs(key: jax.Array, batch: int, time: int, dtype: DTypeLike) -> tuple[jax.Array, ...]:
    keys = jax.random.split(key, 3)
    shapes = (batch, time, 4, 6), (batch, time, 2, 6), (batch, time, 2, 5)
    return tuple(jax.random.normal(k, shape, dtype) for k, shape in zip(keys, shapes, strict=True))


def _example(key: jax.Array, batch: int, time: int, prefix: int, context: int, dtype: DTypeLike) -> Example:
    """An example whose state is for `context` tokens, `prefix` of which it has read."""
    key_x, key_prefix = jax.random.split(key)
    empty, before = init_state(batch, context, 2, 6, 5, 4, dtype), _inputs(key_prefix, batch, prefix, dtype)
    return Example(_inputs(key_x, batch, time, dtype), {}, {"block": 4}, recurrent(*before, state=empty, block=4)[1])


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`. The state is for T tokens, at least 16."""
    return _example(key, batch, time, 16, max(time, 16), dtype)


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """The log-decays of `stresses` become score differences: none, small, about 50, and a mix of these."""
    base = _example(key, batch, time, 15, 15 + time, dtype)
    q_BTHK, *kv = base.xs

    def sharpened(log_BTH1):
        return base._replace(xs=(q_BTHK * jnp.clip(log_BTH1, -50, 0), *kv))

    return stresses(key, base, (*q_BTHK.shape[:3], 1), sharpened)
