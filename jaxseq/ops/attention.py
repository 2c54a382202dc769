"""Causal softmax attention with grouped keys and values, a sliding window, and a ring buffer as its state.

    y_t = sum_s softmax_s(scale q_t . k_s) v_s,   s over the tokens of the document with t - window < s <= t

Vaswani et al. 2017 (arXiv:1706.03762, eq. 1). Grouped queries (Ainslie et al. 2023, arXiv:2305.13245): H query heads share G
key/value heads. The chunkwise form is an online softmax over blocks, see `_attend`; its memory is linear in T.

Options: `window`, the number of visible tokens including the query's own; `scale`, default 1 / sqrt(K); `cap`: scores become
cap tanh(score / cap) (Gemma 2, arXiv:2408.00118, §2); `sink_H`: the score of one more key per head, with value 0 (gpt-oss).

State: the last S keys and values of the document. Token n of the document (from 0 at START, padding not counted) is stored in
slot n mod S; empty slots are zero. S is the `context` given to `init_state`, or the window. Without a window, tokens beyond S
would overwrite keys that are still attended to; outside jit `LM.__call__` then raises UserError. `state=None` without a window
returns a state of S = T slots. Scores and sums are in the accumulation dtype.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq.ops import _attend, _time
from jaxseq.ops._attend import Keys, Score, Span, attend
from jaxseq.ops._example import Example, stresses
from jaxseq.ops._layered import Layered


class AttentionState(NamedTuple):
    """Ring buffer of the last S keys and values of the document, in the inputs' dtype."""

    k_BGSK: jax.Array  # ring buffer, slot n mod S
    v_BGSV: jax.Array
    count_B: jax.Array  # int32: tokens of the document so far


def init_state(
    batch: int, context: int, kv_heads: int, key_size: int, value_size: int, dtype: DTypeLike = jnp.float32
) -> AttentionState:
    """The empty state with `context` slots, in `dtype`."""
    k_BGSK = jnp.zeros((batch, kv_heads, context, key_size), dtype)
    v_BGSV = jnp.zeros((batch, kv_heads, context, value_size), dtype)
    return AttentionState(k_BGSK, v_BGSV, jnp.zeros((batch,), jnp.int32))


def _prepare(q_BTHK, k_BTGK, v_BTGV, state, pos, window, scale):
    chex.assert_rank([q_BTHK, k_BTGK, v_BTGV], 4)
    chex.assert_equal_shape_prefix([q_BTHK, k_BTGK, v_BTGV], 2)
    chex.assert_equal_shape_prefix([k_BTGK, v_BTGV], 3)
    chex.assert_axis_dimension(k_BTGK, 3, q_BTHK.shape[3])
    chex.assert_is_divisible(q_BTHK.shape[2], k_BTGK.shape[2])
    pos_BT = _time.positions(pos, q_BTHK)
    chex.assert_shape(pos_BT, q_BTHK.shape[:2])
    if state is not None:
        for slots, x in ((state.k_BGSK, k_BTGK), (state.v_BGSV, v_BTGV)):
            chex.assert_shape(slots, (x.shape[0], x.shape[2], None, x.shape[3]))
    scale = q_BTHK.shape[3] ** -0.5 if scale is None else scale
    return scale, *_time.clean(pos_BT, q_BTHK, k_BTGK, v_BTGV), pos_BT


def _size(state, window, time) -> int:
    if state is not None:
        return state.k_BGSK.shape[2]
    return window if window is not None else time


def _empty(k_BTGK, v_BTGV, size) -> AttentionState:
    return init_state(k_BTGK.shape[0], size, k_BTGK.shape[2], k_BTGK.shape[3], v_BTGV.shape[3], k_BTGK.dtype)


def indices(count_B: jax.Array, pos_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(index of each token in its document [B, T], index [B] of the last document's first token in this call)."""
    seg_BT, rank_BT = _time.segments(pos_BT), jnp.cumsum(_time.valid(pos_BT), axis=1, dtype=jnp.int32) - 1
    start_BT = jax.lax.cummax(jnp.where(pos_BT == _time.START, rank_BT, 0), axis=1)
    n_BT = rank_BT - start_BT + jnp.where(seg_BT == 0, count_B[:, None], 0)
    return n_BT, jnp.where(_time.continues(pos_BT), count_B, 0)


def next_state(state: AttentionState, k_BTGK: jax.Array, v_BTGV: jax.Array, pos_BT: jax.Array) -> AttentionState:
    """The ring buffer after these tokens; each slot holds the newest token with that n mod S. T >= 1."""
    time, size = k_BTGK.shape[1], state.k_BGSK.shape[2]
    n_BT, first_B = indices(state.count_B, pos_BT)
    count_B = jnp.max(jnp.where(_time.last_segment(pos_BT), n_BT + 1, first_B[:, None]), axis=1)
    n_BS = count_B[:, None] - 1 - (count_B[:, None] - 1 - jnp.arange(size)) % size  # the token of each slot, < 0: none
    t0_B = jnp.argmax(jnp.where(pos_BT == _time.START, jnp.arange(time) + 1, 0), axis=1)  # first token of the last document
    t_BS = jnp.clip(t0_B[:, None] + n_BS - first_B[:, None], 0, time - 1)
    new_BS = n_BS >= first_B[:, None]

    def fill(old_BGSK, x_BTGK):
        fresh_BGSK = jnp.take_along_axis(jnp.swapaxes(x_BTGK, 1, 2), t_BS[:, None, :, None], axis=2).astype(old_BGSK.dtype)
        return jnp.where(new_BS[:, None, :, None], fresh_BGSK, _time.select(_time.continues(pos_BT), old_BGSK))

    return AttentionState(fill(state.k_BGSK, k_BTGK), fill(state.v_BGSV, v_BTGV), count_B)


def _slots(count_B, size: int):
    """Token index of each slot [B, S], negative where the slot is empty."""
    last_B1 = count_B[:, None] - 1
    return last_B1 - (last_B1 - jnp.arange(size)) % size if size else jnp.zeros((last_B1.shape[0], 0), jnp.int32)


def gather(
    state: AttentionState | None, k_BTGK: jax.Array, v_BTGV: jax.Array, pos_BT: jax.Array, window: int | None
) -> tuple[Span, Keys]:
    """(Span of each token, Keys of the state, if any, and of this call).

    The tokens of a row are numbered consecutively from the state's count, without restarting at documents. A token sees the keys
    from its document's first token, or from the first one in its window, to itself.
    """
    count_B = jnp.zeros(k_BTGK.shape[:1], jnp.int32) if state is None else state.count_B
    n_BT, _ = indices(count_B, pos_BT)
    valid_BT = _time.valid(pos_BT)
    own_BT = jnp.cumsum(valid_BT, axis=1, dtype=jnp.int32) - 1 + count_B[:, None]
    low_BT = own_BT - (n_BT if window is None else jnp.minimum(n_BT, window - 1))
    number_BT = jnp.where(valid_BT, own_BT, -1)
    span = Span(jnp.where(valid_BT, low_BT, _attend.NEVER), number_BT)
    own = Keys(jnp.swapaxes(k_BTGK, 1, 2), jnp.swapaxes(v_BTGV, 1, 2), number_BT)
    if state is None:
        return span, own
    number_BS = jnp.maximum(_slots(count_B, state.k_BGSK.shape[2]), -1)
    old = Keys(state.k_BGSK.astype(k_BTGK.dtype), state.v_BGSV.astype(v_BTGV.dtype), number_BS)
    return span, Keys(*(jnp.concatenate([a, b], axis) for a, b, axis in zip(old, own, (2, 2, 1), strict=True)))


def finish(
    y_BTHV: jax.Array, lse_BTH: jax.Array, sink_H: jax.Array | None, pos_BT: jax.Array, dtype: DTypeLike
) -> jax.Array:
    """The output: with the sink, zero at padding, in the inputs' dtype."""
    return _time.select(_time.valid(pos_BT), _attend.with_sink(y_BTHV, lse_BTH, sink_H)).astype(dtype)


def recurrent(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGV: jax.Array, *, state: AttentionState | Layered | None = None,
    pos: jax.Array | None = None, window: int | None = None, scale: float | None = None, cap: float | None = None,
    sink_H: jax.Array | None = None, chunk: int = 1024,
) -> tuple[jax.Array, AttentionState | Layered]:  # fmt: skip
    """One token after another: write its key and value into the ring buffer, then attend to the buffer.

    For T = 1 the state is updated in place, and only the blocks of `chunk` slots that hold a visible token are read. `state`
    may then be a `Layered` stack, which is returned.
    """
    if q_BTHK.shape[1] == 1 and state is not None:
        return _one_token(q_BTHK, k_BTGK, v_BTGV, state, pos, window, scale, cap, sink_H, chunk)
    factor, q_BTHK, k_BTGK, v_BTGV, pos_BT = _prepare(q_BTHK, k_BTGK, v_BTGV, state, pos, window, scale)
    state = _empty(k_BTGK, v_BTGV, _size(state, window, q_BTHK.shape[1])) if state is None else state
    if q_BTHK.shape[1] == 0:
        return _no_tokens(q_BTHK, v_BTGV), state

    def step(state, q_BHK, k_BGK, v_BGV):
        state = _write(state, k_BGK, v_BGV)
        keys = Keys(state.k_BGSK, state.v_BGSV, _slots(state.count_B, state.k_BGSK.shape[2]))
        y_BTHV, lse_BTH = attend(q_BHK[:, None], keys, _latest(state.count_B, window), Score(factor, cap))
        return state, _attend.with_sink(y_BTHV, lse_BTH, sink_H)[:, 0].astype(q_BHK.dtype)

    return _time.scan_time(step, state, (q_BTHK, k_BTGK, v_BTGV), pos_BT)


def _no_tokens(q_BTHK, v_BTGV):
    return jnp.zeros((*q_BTHK.shape[:3], v_BTGV.shape[3]), q_BTHK.dtype)


def _latest(count_B, window) -> Span:
    """The Span of the last of `count_B` tokens: its document, or the last `window` tokens of it."""
    high_B1 = count_B[:, None] - 1
    return Span(jnp.zeros_like(high_B1) if window is None else jnp.maximum(high_B1 - window + 1, 0), high_B1)


def _write(state: AttentionState, k_BGK, v_BGV) -> AttentionState:
    row_B, slot_B = jnp.arange(state.count_B.shape[0]), state.count_B % state.k_BGSK.shape[2]
    k_BGSK = state.k_BGSK.at[row_B, :, slot_B].set(k_BGK.astype(state.k_BGSK.dtype))
    v_BGSV = state.v_BGSV.at[row_B, :, slot_B].set(v_BGV.astype(state.v_BGSV.dtype))
    return AttentionState(k_BGSK, v_BGSV, state.count_B + 1)


def _one_token(q_BTHK, k_BTGK, v_BTGV, state, pos, window, scale, cap, sink_H, chunk):
    """The recurrent form for T = 1. Only the blocks of the state that are read are copied."""
    layered = isinstance(state, Layered)
    stack, layer = state if layered else (jax.tree.map(lambda x: x[None], state), jnp.int32(0))
    alike = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stack)
    scale, q_BTHK, k_BTGK, v_BTGV, pos_BT = _prepare(q_BTHK, k_BTGK, v_BTGV, alike, pos, window, scale)
    size, pos_B = stack.k_BGSK.shape[3], pos_BT[:, 0]
    starts_B, real_B, row_B = pos_B == _time.START, pos_B >= 0, jnp.arange(pos_B.shape[0])
    before_B = jnp.where(starts_B, 0, stack.count_B[layer])
    count_B, slot_B = before_B + real_B, before_B % size

    def write(x_LBGSK, new_BGK):
        # The first token of a document sets all slots of its row to zero; otherwise they are not touched.
        clear = lambda x: x.at[layer].set(_time.select(~starts_B, x[layer]))  # noqa: E731
        x_LBGSK = jax.lax.cond(jnp.any(starts_B), clear, lambda x: x, x_LBGSK)
        new_BGK = jnp.where(_time.expand(real_B, new_BGK), new_BGK.astype(x_LBGSK.dtype), x_LBGSK[layer, row_B, :, slot_B])
        return x_LBGSK.at[layer, row_B, :, slot_B].set(new_BGK)

    stack = AttentionState(
        write(stack.k_BGSK, k_BTGK[:, 0]), write(stack.v_BGSV, v_BTGV[:, 0]), stack.count_B.at[layer].set(count_B)
    )
    span, number_BS, score = _latest(count_B, window), _slots(count_B, size), Score(scale, cap)
    if size <= chunk:
        y_BTHV, lse_BTH = attend(q_BTHK, Keys(stack.k_BGSK[layer], stack.v_BGSV[layer], number_BS), span, score)
    else:
        y_BTHV, lse_BTH = _in_blocks(q_BTHK, stack, layer, number_BS, span, score, chunk)
    y_BTHV = finish(y_BTHV, lse_BTH, sink_H, pos_BT, q_BTHK.dtype)
    return y_BTHV, Layered(stack, layer) if layered else jax.tree.map(lambda x: x[0], stack)


def _in_blocks(q_BTHK, stack: AttentionState, layer, number_BS, span: Span, score: Score, chunk: int):
    """`attend` to one layer of the stack, `chunk` slots at a time. The last block is aligned to the end of the buffer; it masks
    the slots that an earlier block has read."""
    size = number_BS.shape[1]
    index_U = jnp.arange(-(-size // chunk), dtype=jnp.int32)
    first_U = jnp.minimum(index_U * chunk, size - chunk)
    slot_UC = first_U[:, None] + jnp.arange(chunk)
    number_UBC = jnp.where(slot_UC[:, None] >= (index_U * chunk)[:, None, None], jnp.moveaxis(number_BS[:, slot_UC], 1, 0), -1)

    def keys(block):
        first, number_BC = block

        def cut(x_LBGSK):
            _, batch, kv_heads, _, width = x_LBGSK.shape
            zero = jnp.zeros_like(first)
            corner = layer.astype(first.dtype), zero, zero, first, zero
            return jax.lax.dynamic_slice(x_LBGSK, corner, (1, batch, kv_heads, chunk, width))[0]

        return Keys(cut(stack.k_BGSK), cut(stack.v_BGSV), number_BC)

    need_U = _attend.needed(jax.tree.map(lambda x: x[None], span), number_UBC)[0]
    acc, sizes = _time.accumulation_dtype(q_BTHK, stack.v_BGSV), (stack.v_BGSV.shape[2], stack.v_BGSV.shape[4])
    return _attend.over_blocks(q_BTHK, span, score, need_U, (first_U, number_UBC), keys, sizes, acc)


def _all_at_once(q_BTHK, k_BTGK, v_BTGV, state, pos, window, scale, cap, sink_H, chunk):
    """All tokens against the slots of the state and all tokens; `chunk`: see `attend`."""
    scale, q_BTHK, k_BTGK, v_BTGV, pos_BT = _prepare(q_BTHK, k_BTGK, v_BTGV, state, pos, window, scale)
    before = _empty(k_BTGK, v_BTGV, _size(None, window, q_BTHK.shape[1])) if state is None else state
    if q_BTHK.shape[1] == 0:
        return _no_tokens(q_BTHK, v_BTGV), before
    span, keys = gather(state, k_BTGK, v_BTGV, pos_BT, window)
    y_BTHV, lse_BTH = attend(q_BTHK, keys, span, Score(scale, cap), chunk)
    return finish(y_BTHV, lse_BTH, sink_H, pos_BT, q_BTHK.dtype), next_state(before, k_BTGK, v_BTGV, pos_BT)


def parallel(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGV: jax.Array, *, state: AttentionState | None = None,
    pos: jax.Array | None = None, window: int | None = None, scale: float | None = None, cap: float | None = None,
    sink_H: jax.Array | None = None,
) -> tuple[jax.Array, AttentionState]:  # fmt: skip
    """The whole T x (S + T) score matrix at once."""
    return _all_at_once(q_BTHK, k_BTGK, v_BTGV, state, pos, window, scale, cap, sink_H, None)


def chunkwise(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGV: jax.Array, *, state: AttentionState | None = None,
    pos: jax.Array | None = None, window: int | None = None, scale: float | None = None, cap: float | None = None,
    sink_H: jax.Array | None = None, chunk: int | None = None,
) -> tuple[jax.Array, AttentionState]:  # fmt: skip
    """Blocks of `chunk` queries by blocks of `chunk` keys with an online softmax; the backward pass recomputes the scores.

    chunk: default 128, and 256 from T = 512, where fewer pairs of blocks on the diagonal are half empty.
    """
    chunk = chunk or (128 if q_BTHK.shape[1] < 512 else 256)
    return _all_at_once(q_BTHK, k_BTGK, v_BTGV, state, pos, window, scale, cap, sink_H, chunk)


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}
CUT = "ring"


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`."""
    window = 12

    def inputs(key, time):
        keys = jax.random.split(key, 3)
        shapes = (batch, time, 4, 6), (batch, time, 2, 6), (batch, time, 2, 5)
        return tuple(jax.random.normal(k, shape, dtype) for k, shape in zip(keys, shapes, strict=True))

    key_x, key_prefix, key_sink = jax.random.split(key, 3)
    state = recurrent(*inputs(key_prefix, 15), window=window)[1]
    acc = jnp.promote_types(dtype, jnp.float32)
    return Example(inputs(key_x, time), {"sink_H": jax.random.normal(key_sink, (4,), acc)}, {"window": window}, state)


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """The log-decays of `stresses` become score differences: none, small, about 50, and a mix of these."""
    base = example(key, batch, time, dtype)
    q_BTHK, *kv = base.xs

    def sharpened(log_BTH1):
        return base._replace(xs=(q_BTHK * jnp.clip(log_BTH1, -50, 0), *kv))

    return stresses(key, base, (*q_BTHK.shape[:3], 1), sharpened)
