"""Forgetting attention: softmax attention with a forget gate per head (Lin et al. 2025, arXiv:2503.02130, §3).

    y_t = sum_s softmax_s(scale q_t . k_s + sum_{s < i <= t} log_f_i) v_s,   s over the tokens with t - window < s <= t

The tokens are those of the query's document. log_f <= 0, the logarithm of a gate, depends on the data; with log_f = 0 this is
`attention`. In the paper all heads have keys of their own; here H query heads may share G key/value heads, as in `attention`, and
each query head has its own gate. Options: `window`, the number of visible tokens including the query's own; `scale`, default
1 / sqrt(K).

Each sum of log-decays adds only the tokens between the two; a difference of cumulative sums would cancel, see `_decay`.

State: the ring buffer of `attention`, and for each slot the sum of log_f over the tokens after the slot's token; empty slots are
zero. Scores and sums are in the accumulation dtype.
"""

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq.ops import _attend, _decay, _time, attention
from jaxseq.ops._attend import Keys, Score, Span, attend
from jaxseq.ops._example import Example, stresses
from jaxseq.ops.attention import AttentionState


class ForgettingAttentionState(NamedTuple):
    """The ring buffer of `attention`, and the decay of each slot. The field `count_B` is only in `ring`: dropping the last tokens
    by lowering the count would leave their decays in the sums."""

    ring: AttentionState
    log_decay_BHS: jax.Array  # sum of log_f over the tokens after the slot's token, in the accumulation dtype


def init_state(
    batch: int, context: int, heads: int, kv_heads: int, key_size: int, value_size: int, dtype: DTypeLike = jnp.float32
) -> ForgettingAttentionState:
    """The empty state with `context` slots: keys and values in `dtype`, sums at least in float32."""
    ring = attention.init_state(batch, context, kv_heads, key_size, value_size, dtype)
    return ForgettingAttentionState(ring, jnp.zeros((batch, heads, context), jnp.promote_types(dtype, jnp.float32)))


def _prepare(q_BTHK, k_BTGK, v_BTGV, log_f_BTH, state, pos, window, scale):
    """(scale, state, pos_BT, q, k, v, log_f): log_f is 0 where a document starts and at padding."""
    chex.assert_rank(log_f_BTH, 3)
    chex.assert_equal_shape_prefix([q_BTHK, log_f_BTH], 3)
    ring = None if state is None else state.ring
    scale, q_BTHK, k_BTGK, v_BTGV, pos_BT = attention._prepare(q_BTHK, k_BTGK, v_BTGV, ring, pos, window, scale)
    acc = _time.accumulation_dtype(q_BTHK, k_BTGK, v_BTGV, log_f_BTH)
    log_f_BTH = _time.select(pos_BT > _time.START, log_f_BTH.astype(acc))
    if state is None:
        ring = attention._empty(k_BTGK, v_BTGV, attention._size(None, window, q_BTHK.shape[1]))
        shape = (q_BTHK.shape[0], q_BTHK.shape[2], ring.k_BGSK.shape[2])
        state = ForgettingAttentionState(ring, jnp.zeros(shape, acc))
    chex.assert_shape(state.log_decay_BHS, (q_BTHK.shape[0], q_BTHK.shape[2], state.ring.k_BGSK.shape[2]))
    return scale, state, pos_BT, q_BTHK, k_BTGK, v_BTGV, log_f_BTH


def _add(state: ForgettingAttentionState, log_BH) -> jax.Array:
    """The sums of the slots with log_BH added to those that hold a token."""
    filled_B1S = (attention._slots(state.ring.count_B, state.log_decay_BHS.shape[2]) >= 0)[:, None]
    return state.log_decay_BHS + jnp.where(filled_B1S, log_BH[..., None], 0)


def _next_state(state: ForgettingAttentionState, k_BTGK, v_BTGV, log_f_BTH, pos_BT) -> ForgettingAttentionState:
    """The state after these tokens. T >= 1. The sums are stored like keys: in the slots of a ring buffer of their own."""
    old_BHS1, new_BTH1 = _add(state, jnp.sum(log_f_BTH, axis=1))[..., None], jax.vmap(_decay.after)(log_f_BTH)[..., None]
    sums = attention.next_state(AttentionState(old_BHS1, old_BHS1, state.ring.count_B), new_BTH1, new_BTH1, pos_BT)
    return ForgettingAttentionState(attention.next_state(state.ring, k_BTGK, v_BTGV, pos_BT), sums.k_BGSK[..., 0])


def recurrent(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGV: jax.Array, log_f_BTH: jax.Array, *,
    state: ForgettingAttentionState | None = None, pos: jax.Array | None = None, window: int | None = None,
    scale: float | None = None,
) -> tuple[jax.Array, ForgettingAttentionState]:  # fmt: skip
    """One token after another: add log_f to the sums of all slots, write the token into the ring buffer, attend to the buffer."""
    prepared = _prepare(q_BTHK, k_BTGK, v_BTGV, log_f_BTH, state, pos, window, scale)
    factor, before, pos_BT, *xs = prepared
    if q_BTHK.shape[1] == 0:
        return attention._no_tokens(q_BTHK, v_BTGV), before

    def step(state, q_BHK, k_BGK, v_BGV, log_f_BH):
        size, count_B1 = state.log_decay_BHS.shape[2], state.ring.count_B[:, None]
        log_decay_BHS = jnp.where((jnp.arange(size) == count_B1 % size)[:, None], 0, _add(state, log_f_BH))
        ring = attention._write(state.ring, k_BGK, v_BGV)
        keys = Keys(ring.k_BGSK, ring.v_BGSV, attention._slots(ring.count_B, size))
        score = Score(factor, bias_BHTS=log_decay_BHS[:, :, None])
        y_BTHV, _ = attend(q_BHK[:, None], keys, attention._latest(ring.count_B, window), score)
        return ForgettingAttentionState(ring, log_decay_BHS), y_BTHV[:, 0].astype(q_BHK.dtype)

    return _time.scan_time(step, before, xs, pos_BT)


def _all_at_once(q_BTHK, k_BTGK, v_BTGV, log_f_BTH, state, pos, window, scale, chunk):
    """All tokens against the slots of the state and all tokens; in blocks if T > chunk."""
    prepared = _prepare(q_BTHK, k_BTGK, v_BTGV, log_f_BTH, state, pos, window, scale)
    scale, before, pos_BT, q_BTHK, k_BTGK, v_BTGV, log_f_BTH = prepared
    if (time := q_BTHK.shape[1]) == 0:
        return attention._no_tokens(q_BTHK, v_BTGV), before
    span, keys = attention.gather(None if state is None else before.ring, k_BTGK, v_BTGV, pos_BT, window)
    slots_BHS = before.log_decay_BHS[:, :, : keys.number_BS.shape[1] - time]  # none without a state
    way = _whole if chunk is None or time <= chunk else partial(_blocks, chunk=chunk)
    y_BTHV, lse_BTH = way(q_BTHK, keys, span, scale, log_f_BTH, slots_BHS)
    y_BTHV = attention.finish(y_BTHV, lse_BTH, None, pos_BT, q_BTHK.dtype)
    return y_BTHV, _next_state(before, k_BTGK, v_BTGV, log_f_BTH, pos_BT)


def _upto(log_BTH) -> jax.Array:
    """[B, H, T, 1]: sum of the log-decays of the tokens up to and including t."""
    return jnp.moveaxis(jax.vmap(_decay.upto)(log_BTH), 1, 2)[..., None]


def _between(log_BTH) -> jax.Array:
    """[B, H, T, S]: sum of the log-decays of the tokens after s, up to and including t."""
    return jnp.moveaxis(_decay.between(jnp.moveaxis(log_BTH, 1, 0)), (0, 1), (2, 3))


def _whole(q_BTHK, keys: Keys, span: Span, scale: float, log_f_BTH, slots_BHS):
    """`attend` with all scores at once. The first keys are those of the slots, with these sums up to the start of the call."""
    slots_BHTS = _upto(log_f_BTH) + slots_BHS[:, :, None]
    return attend(q_BTHK, keys, span, Score(scale, bias_BHTS=jnp.concatenate([slots_BHTS, _between(log_f_BTH)], axis=3)))


class _KeyBlock(NamedTuple):
    """A block of C keys; with a leading axis U, all blocks."""

    keys: Keys
    after_BCH: jax.Array  # sum of the log-decays after each key: to the end of the block; of a slot: to the start of the call
    total_BH: jax.Array  # sum of the log-decays of the block's tokens; of slots: 0


def _cut(keys: Keys, log_BSH, chunk: int) -> tuple[Keys, jax.Array]:
    """Blocks of keys, and of an array with a value per key."""
    k_BSGK, v_BSGV = jnp.swapaxes(keys.k_BGSK, 1, 2), jnp.swapaxes(keys.v_BGSV, 1, 2)
    number_UBC, k_UBCGK, v_UBCGV, log_UBCH = _time.split_chunks(chunk, keys.number_BS, k_BSGK, v_BSGV, log_BSH)
    return Keys(jnp.swapaxes(k_UBCGK, 2, 3), jnp.swapaxes(v_UBCGV, 2, 3), number_UBC), log_UBCH


def _key_blocks(keys: Keys, log_f_BTH, slots_BHS, chunk: int) -> tuple[_KeyBlock, int]:
    """(all blocks of keys, those of the slots first, the number of the latter)."""
    size = slots_BHS.shape[2]
    part = lambda cut: Keys(keys.k_BGSK[:, :, cut], keys.v_BGSV[:, :, cut], keys.number_BS[:, cut])  # noqa: E731
    own, log_UBCH = _cut(part(slice(size, None)), log_f_BTH, chunk)
    tokens = _KeyBlock(own, jax.vmap(jax.vmap(_decay.after))(log_UBCH), jnp.sum(log_UBCH, axis=2))
    old, after_UBCH = _cut(part(slice(size)), jnp.swapaxes(slots_BHS, 1, 2), chunk)
    slots = _KeyBlock(old, after_UBCH, jnp.zeros((len(after_UBCH), *tokens.total_BH.shape[1:]), log_UBCH.dtype))
    return jax.tree.map(lambda *both: jnp.concatenate(both), slots, tokens), len(after_UBCH)


def _blocks(q_BTHK, keys: Keys, span: Span, scale: float, log_f_BTH, slots_BHS, chunk: int):
    """`_whole` for blocks of queries and blocks of keys, from the queries' own block back to the oldest; blocks without a visible
    key are skipped. The backward pass stores the results of one block of queries at a time, so memory is linear in T.

    The bias of a pair is the sum after s to the end of its block, over the blocks between, and from the start of t's block to t.
    """
    blocks, first = _key_blocks(keys, log_f_BTH, slots_BHS, chunk)
    high_ZBC, low_ZBC, q_ZBCHK, log_ZBCH = _time.split_chunks(chunk, span.high_BT, span.low_BT, q_BTHK, log_f_BTH)
    spans = Span(low_ZBC, high_ZBC)
    before_ZU = jnp.arange(first + len(high_ZBC)) < first + jnp.arange(len(high_ZBC))[:, None]
    need_ZU = _attend.needed(spans, blocks.keys.number_BS) & before_ZU

    def queries(row):
        q_BCHK, span, own, log_BCH, before_U, need_U = row
        upto_BHC1 = _upto(log_BCH)
        part = attend(q_BCHK, own, span, Score(scale, bias_BHTS=_between(log_BCH)))

        def add(carry, inputs):
            part, far_BH = carry
            block, before, need = inputs

            def merged(part):
                bias_BHCS = upto_BHC1 + far_BH[..., None, None] + jnp.swapaxes(block.after_BCH, 1, 2)[:, :, None]
                return _attend.merge(part, attend(q_BCHK, block.keys, span, Score(scale, bias_BHTS=bias_BHCS)))

            part = jax.lax.cond(need, merged, lambda part: part, part)
            return (part, far_BH + jnp.where(before, block.total_BH, 0)), None

        start = part, jnp.zeros_like(log_BCH[:, 0])  # the sum over the blocks between is carried
        (part, _), _ = jax.lax.scan(jax.checkpoint(add, prevent_cse=False), start, (blocks, before_U, need_U), reverse=True)
        return part

    own = jax.tree.map(lambda x: x[first:], blocks.keys)
    rows = q_ZBCHK, spans, own, log_ZBCH, before_ZU, need_ZU
    y_ZBCHV, lse_ZBCH = jax.lax.map(jax.checkpoint(queries, prevent_cse=False), rows)
    return tuple(_time.join_chunks(x, q_BTHK.shape[1]) for x in (y_ZBCHV, lse_ZBCH))


def parallel(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGV: jax.Array, log_f_BTH: jax.Array, *,
    state: ForgettingAttentionState | None = None, pos: jax.Array | None = None, window: int | None = None,
    scale: float | None = None,
) -> tuple[jax.Array, ForgettingAttentionState]:  # fmt: skip
    """The whole T x (S + T) score matrix at once."""
    return _all_at_once(q_BTHK, k_BTGK, v_BTGV, log_f_BTH, state, pos, window, scale, None)


def chunkwise(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGV: jax.Array, log_f_BTH: jax.Array, *,
    state: ForgettingAttentionState | None = None, pos: jax.Array | None = None, window: int | None = None,
    scale: float | None = None, chunk: int = 128,
) -> tuple[jax.Array, ForgettingAttentionState]:  # fmt: skip
    """Blocks of `chunk` queries by blocks of `chunk` keys; the backward pass recomputes the scores. Memory is linear in T."""
    return _all_at_once(q_BTHK, k_BTGK, v_BTGV, log_f_BTH, state, pos, window, scale, chunk)


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}
CUT = "ring"


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`."""
    window = 12

    def inputs(key, time) -> tuple[jax.Array, ...]:
        keys = jax.random.split(key, 4)
        shapes = (batch, time, 4, 6), (batch, time, 2, 6), (batch, time, 2, 5), (batch, time, 4)
        *qkv, gate_BTH = (jax.random.normal(k, shape, dtype) for k, shape in zip(keys, shapes, strict=True))
        return *qkv, -jax.nn.softplus(gate_BTH - 2)

    key_x, key_prefix = jax.random.split(key)
    return Example(inputs(key_x, time), {}, {"window": window}, recurrent(*inputs(key_prefix, 15), window=window)[1])


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """The hard inputs by name, see `jaxseq.ops.stresses`."""
    base = example(key, batch, time, dtype)
    *qkv, log_f_BTH = base.xs
    return stresses(key, base, log_f_BTH.shape, lambda log_f_BTH: base._replace(xs=(*qkv, log_f_BTH)))
