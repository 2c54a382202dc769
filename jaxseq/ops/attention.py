"""Causal softmax attention with grouped keys and values, a sliding window, and a ring buffer as its state.

    y_t = sum_s softmax_s(scale q_t . k_s) v_s,   s over the tokens of the document with t - window < s <= t

Vaswani et al. 2017 (arXiv:1706.03762, eq. 1). Grouped queries (Ainslie et al. 2023, arXiv:2305.13245): H query heads share G
key/value heads. The chunkwise form is the online softmax of Milakov & Gimelshein 2018 (arXiv:1805.02867) over blocks, as in
FlashAttention (Dao et al. 2022, arXiv:2205.14135, algorithm 1); its memory is linear in T.

State: the last S keys and values of the document. Token n of the document (from 0 at START, padding not counted) is stored in
slot n mod S; empty slots are zero. S is the `context` given to `init_state`, or the window. Without a window, tokens beyond S
would overwrite keys that are still attended to; `LM.__call__` raises an error then. `state=None` without a window returns a
state of S = T slots. Scores and sums are in the accumulation dtype.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxseq import compat
from jaxseq.ops import _time
from jaxseq.ops._example import Example, stresses
from jaxseq.ops._layered import Layered


class AttentionState(NamedTuple):
    """Ring buffer of the last S keys and values of the document, in the inputs' dtype."""

    k_BSGK: jax.Array  # ring buffer, slot n mod S
    v_BSGV: jax.Array
    count_B: jax.Array  # int32: tokens of the document so far


def init_state(
    batch: int, context: int, kv_heads: int, key_size: int, value_size: int, dtype=jnp.float32
) -> AttentionState:
    """The empty state with `context` slots, in `dtype`."""
    k_BSGK = jnp.zeros((batch, context, kv_heads, key_size), dtype)
    v_BSGV = jnp.zeros((batch, context, kv_heads, value_size), dtype)
    return AttentionState(k_BSGK, v_BSGV, jnp.zeros((batch,), jnp.int32))


def _prepare(q_BTHK, k_BTGK, v_BTGV, state, pos, window, scale):
    chex.assert_rank([q_BTHK, k_BTGK, v_BTGV], 4)
    chex.assert_equal_shape_prefix([q_BTHK, k_BTGK, v_BTGV], 2)
    chex.assert_equal_shape_prefix([k_BTGK, v_BTGV], 3)
    chex.assert_axis_dimension(k_BTGK, 3, q_BTHK.shape[3])
    chex.assert_is_divisible(q_BTHK.shape[2], k_BTGK.shape[2])
    pos_BT = _time.positions(pos, q_BTHK)
    chex.assert_shape(pos_BT, q_BTHK.shape[:2])
    if state is not None:
        for slots, x in ((state.k_BSGK, k_BTGK), (state.v_BSGV, v_BTGV)):
            chex.assert_shape(slots, (x.shape[0], None, *x.shape[2:]))
    scale = q_BTHK.shape[3] ** -0.5 if scale is None else scale
    return scale, *_time.clean(pos_BT, q_BTHK, k_BTGK, v_BTGV), pos_BT


def _size(state, window, time) -> int:
    if state is not None:
        return state.k_BSGK.shape[1]
    return window if window is not None else time


def _empty(k_BTGK, v_BTGV, size) -> AttentionState:
    return init_state(k_BTGK.shape[0], size, *k_BTGK.shape[2:], v_BTGV.shape[3], k_BTGK.dtype)


def indices(count_B, pos_BT):
    """(index of each token in its document [B, T], index [B] of the last document's first token in this call)."""
    seg_BT, rank_BT = _time.segments(pos_BT), jnp.cumsum(_time.valid(pos_BT), axis=1, dtype=jnp.int32) - 1
    start_BT = jax.lax.cummax(jnp.where(pos_BT == _time.START, rank_BT, 0), axis=1)
    n_BT = rank_BT - start_BT + jnp.where(seg_BT == 0, count_B[:, None], 0)
    return n_BT, jnp.where(_time.continues(pos_BT), count_B, 0)


def next_state(state: AttentionState, k_BTGK, v_BTGV, pos_BT) -> AttentionState:
    """The ring buffer after these tokens; each slot holds the newest token with that n mod S. T >= 1."""
    time, size = k_BTGK.shape[1], state.k_BSGK.shape[1]
    n_BT, first_B = indices(state.count_B, pos_BT)
    count_B = jnp.max(jnp.where(_time.last_segment(pos_BT), n_BT + 1, first_B[:, None]), axis=1)
    n_BS = count_B[:, None] - 1 - (count_B[:, None] - 1 - jnp.arange(size)) % size  # the token of each slot, < 0: none
    t0_B = jnp.argmax(jnp.where(pos_BT == _time.START, jnp.arange(time) + 1, 0), axis=1)  # first token of the last document
    t_BS = jnp.clip(t0_B[:, None] + n_BS - first_B[:, None], 0, time - 1)
    new_BS = n_BS >= first_B[:, None]

    def fill(old, fresh):
        fresh = jnp.take_along_axis(fresh, t_BS[..., None, None], axis=1).astype(old.dtype)
        kept = _time.select(_time.continues(pos_BT), old)
        return jnp.where(_time.expand(new_BS, old), fresh, kept)

    return AttentionState(fill(state.k_BSGK, k_BTGK), fill(state.v_BSGV, v_BTGV), count_B)


def _slots(count_B, size: int):
    """Token index of each slot [B, S], negative where the slot is empty."""
    last_B1 = count_B[:, None] - 1
    return last_B1 - (last_B1 - jnp.arange(size)) % size if size else jnp.zeros((last_B1.shape[0], 0), jnp.int32)


class Keys(NamedTuple):
    """The keys a query may attend to: the slots of the state, then the tokens of this call."""

    k_BSGK: jax.Array
    v_BSGV: jax.Array
    n_BS: jax.Array  # index in the document; negative: masked for all queries
    seg_BS: jax.Array  # document number within the call


def gather_keys(state: AttentionState | None, k_BTGK, v_BTGV, pos_BT) -> tuple[jax.Array, jax.Array, Keys]:
    """(indices of the queries, their document numbers, both [B, T], keys of the state, if any, and of this call)."""
    count_B = jnp.zeros(k_BTGK.shape[:1], jnp.int32) if state is None else state.count_B
    n_BT, _ = indices(count_B, pos_BT)
    seg_BT = _time.segments(pos_BT)
    own = Keys(k_BTGK, v_BTGV, jnp.where(_time.valid(pos_BT), n_BT, -1), seg_BT)
    if state is None:
        return n_BT, seg_BT, own
    n_BS = _slots(state.count_B, state.k_BSGK.shape[1])
    old = Keys(state.k_BSGK.astype(k_BTGK.dtype), state.v_BSGV.astype(v_BTGV.dtype), n_BS, jnp.zeros_like(n_BS))
    return n_BT, seg_BT, jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), old, own)


def _mask(n_BT, seg_BT, keys: Keys, window):
    """[B, T, S] bool: same document, not later, within the window."""
    n_BT1, n_B1S = n_BT[:, :, None], keys.n_BS[:, None]
    mask_BTS = (n_B1S >= 0) & (n_B1S <= n_BT1) & (seg_BT[:, :, None] == keys.seg_BS[:, None])
    return mask_BTS if window is None else mask_BTS & (n_B1S > n_BT1 - window)


def _scores(q_BTHK, keys: Keys, mask_BTS, scale, acc):
    """[B, G, R, T, S] scaled products, -inf where masked; R = H / G query heads share a key head."""
    batch, time, heads, size = q_BTHK.shape
    kv_heads = keys.k_BSGK.shape[2]
    q_BTGRK = q_BTHK.reshape(batch, time, kv_heads, heads // kv_heads, size)
    scores = compat.einsum("btgrk,bsgk->bgrts", q_BTGRK, keys.k_BSGK, dtype=acc) * scale
    return jnp.where(mask_BTS[:, None, None], scores, -jnp.inf)


def _weighted(p_BGRTS, v_BSGV, acc):
    return compat.einsum("bgrts,bsgv->bgrtv", p_BGRTS.astype(v_BSGV.dtype), v_BSGV, dtype=acc)


def _finish(y_BGRTV, pos_BT, dtype):
    batch, kv_heads, groups, time, size = y_BGRTV.shape
    y_BTHV = jnp.moveaxis(y_BGRTV, 3, 1).reshape(batch, time, kv_heads * groups, size)
    return _time.select(_time.valid(pos_BT), y_BTHV).astype(dtype)


def recurrent(q_BTHK, k_BTGK, v_BTGV, *, state=None, pos=None, window=None, scale=None, chunk: int = 1024):
    """One token after another: write its key and value into the ring buffer, then attend to the buffer.

    For T = 1 the state is updated in place, and only the blocks of `chunk` slots that hold a visible token are read. `state`
    may then be a `Layered` stack, which is returned.
    """
    if q_BTHK.shape[1] == 1 and state is not None:
        return _one_token(q_BTHK, k_BTGK, v_BTGV, state, pos, window, scale, chunk)
    scale, q_BTHK, k_BTGK, v_BTGV, pos_BT = _prepare(q_BTHK, k_BTGK, v_BTGV, state, pos, window, scale)
    state = _empty(k_BTGK, v_BTGV, _size(state, window, q_BTHK.shape[1])) if state is None else state
    if q_BTHK.shape[1] == 0:
        return v_BTGV.repeat(q_BTHK.shape[2] // k_BTGK.shape[2], axis=2).astype(q_BTHK.dtype), state
    acc = _time.accumulation_dtype(q_BTHK, v_BTGV)

    def step(state, q_BHK, k_BGK, v_BGV):
        state = _write(state, k_BGK, v_BGV)
        n_BS = _slots(state.count_B, state.k_BSGK.shape[1])
        keys = Keys(state.k_BSGK, state.v_BSGV, n_BS, jnp.zeros_like(n_BS))
        n_B1 = state.count_B[:, None] - 1
        return state, _look(q_BHK[:, None], n_B1, keys, window, scale, acc)[:, 0].astype(q_BHK.dtype)

    return _time.scan_time(step, state, (q_BTHK, k_BTGK, v_BTGV), pos_BT)


def _write(state: AttentionState, k_BGK, v_BGV) -> AttentionState:
    row_B, slot_B = jnp.arange(state.count_B.shape[0]), state.count_B % state.k_BSGK.shape[1]
    k_BSGK = state.k_BSGK.at[row_B, slot_B].set(k_BGK.astype(state.k_BSGK.dtype))
    v_BSGV = state.v_BSGV.at[row_B, slot_B].set(v_BGV.astype(state.v_BSGV.dtype))
    return AttentionState(k_BSGK, v_BSGV, state.count_B + 1)


def _look(q_BTHK, n_BT, keys: Keys, window, scale, acc):
    """y [B, T, H, V] for queries with index n_BT, all in the same document as the keys."""
    scores = _scores(q_BTHK, keys, _mask(n_BT, jnp.zeros_like(n_BT), keys, window), scale, acc)
    y_BGRTV = _weighted(jax.nn.softmax(scores, axis=-1), keys.v_BSGV, acc)
    return jnp.moveaxis(y_BGRTV, 3, 1).reshape(*q_BTHK.shape[:3], -1)


def _one_token(q_BTHK, k_BTGK, v_BTGV, state, pos, window, scale, chunk):
    """The recurrent form for T = 1. Only the blocks of the state that are read are copied."""
    layered = isinstance(state, Layered)
    stack, layer = state if layered else (jax.tree.map(lambda x: x[None], state), jnp.int32(0))
    alike = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stack)
    scale, q_BTHK, k_BTGK, v_BTGV, pos_BT = _prepare(q_BTHK, k_BTGK, v_BTGV, alike, pos, window, scale)
    acc, size, pos_B = _time.accumulation_dtype(q_BTHK, v_BTGV), stack.k_BSGK.shape[2], pos_BT[:, 0]
    starts_B, real_B, row_B = pos_B == _time.START, pos_B >= 0, jnp.arange(pos_B.shape[0])
    before_B = jnp.where(starts_B, 0, stack.count_B[layer])
    count_B, slot_B = before_B + real_B, before_B % size

    def write(x_LBSGK, new_BGK):
        # The first token of a document sets all slots of its row to zero; otherwise they are not touched.
        clear = lambda x: x.at[layer].set(_time.select(~starts_B, x[layer]))  # noqa: E731
        x_LBSGK = jax.lax.cond(jnp.any(starts_B), clear, lambda x: x, x_LBSGK)
        new_BGK = jnp.where(_time.expand(real_B, new_BGK), new_BGK.astype(x_LBSGK.dtype), x_LBSGK[layer, row_B, slot_B])
        return x_LBSGK.at[layer, row_B, slot_B].set(new_BGK)

    stack = AttentionState(
        write(stack.k_BSGK, k_BTGK[:, 0]), write(stack.v_BSGV, v_BTGV[:, 0]), stack.count_B.at[layer].set(count_B)
    )
    seen_B = jnp.maximum(count_B, 1)  # a row without tokens attends to one zero slot: an empty softmax would be NaN
    n_B1, n_BS = seen_B[:, None] - 1, _slots(seen_B, size)
    if size <= chunk:
        keys = Keys(stack.k_BSGK[layer], stack.v_BSGV[layer], n_BS, jnp.zeros_like(n_BS))
        y_BTHV = _look(q_BTHK, n_B1, keys, window, scale, acc)
    else:
        y_BTHV = _look_in_blocks(q_BTHK, n_B1, stack, layer, n_BS, window, scale, acc, chunk)
    y_BTHV = _time.select(real_B, y_BTHV).astype(q_BTHK.dtype)
    return y_BTHV, Layered(stack, layer) if layered else jax.tree.map(lambda x: x[0], stack)


def _look_in_blocks(q_BTHK, n_BT, stack: AttentionState, layer, n_BS, window, scale, acc, chunk):
    """`_look` for one layer of the stack, `chunk` slots at a time. The last block is aligned to the end of the buffer; slots
    that an earlier block has read are masked in it."""
    batch, size = n_BS.shape

    def first(i):
        return jnp.minimum(i * chunk, size - chunk)

    def index(i):
        n_BC = jax.lax.dynamic_slice_in_dim(n_BS, first(i), chunk, axis=1)
        return jnp.where(first(i) + jnp.arange(chunk) >= i * chunk, n_BC, -1)

    def keys(i):
        def cut(x_LBSGK):
            shape = (1, batch, chunk, *x_LBSGK.shape[3:])
            zero = jnp.zeros_like(i)
            return jax.lax.dynamic_slice(x_LBSGK, (layer.astype(i.dtype), zero, first(i), zero, zero), shape)[0]

        n_BC = index(i)
        return Keys(cut(stack.k_BSGK), cut(stack.v_BSGV), n_BC, jnp.zeros_like(n_BC))

    def visible(i):
        n_BC = index(i)
        return jnp.any(_mask(n_BT, jnp.zeros_like(n_BT), Keys(None, None, n_BC, jnp.zeros_like(n_BC)), window))

    seg_BT, blocks = jnp.zeros_like(n_BT), jnp.arange(-(-size // chunk), dtype=jnp.int32)
    kv_heads, value_size = stack.v_BSGV.shape[3:]
    y_BGRTV = _online_softmax(q_BTHK, n_BT, seg_BT, blocks, visible, keys, (kv_heads, value_size), window, scale, acc)
    return jnp.moveaxis(y_BGRTV, 3, 1).reshape(*q_BTHK.shape[:3], -1)


def parallel(q_BTHK, k_BTGK, v_BTGV, *, state=None, pos=None, window=None, scale=None):
    """The whole T x (S + T) score matrix at once."""
    scale, q_BTHK, k_BTGK, v_BTGV, pos_BT = _prepare(q_BTHK, k_BTGK, v_BTGV, state, pos, window, scale)
    if q_BTHK.shape[1] == 0:
        return recurrent(q_BTHK, k_BTGK, v_BTGV, state=state, window=window)
    acc = _time.accumulation_dtype(q_BTHK, v_BTGV)
    n_BT, seg_BT, keys = gather_keys(state, k_BTGK, v_BTGV, pos_BT)
    scores = _scores(q_BTHK, keys, _mask(n_BT, seg_BT, keys, window), scale, acc)
    scores = jnp.where(_time.valid(pos_BT)[:, None, None, :, None], scores, 0)  # an empty softmax has NaN gradients
    y_BTHV = _finish(_weighted(jax.nn.softmax(scores, axis=-1), keys.v_BSGV, acc), pos_BT, q_BTHK.dtype)
    before = _empty(k_BTGK, v_BTGV, _size(None, window, q_BTHK.shape[1])) if state is None else state
    return y_BTHV, next_state(before, k_BTGK, v_BTGV, pos_BT)


def _online_softmax(q_BCHK, n_BC, seg_BC, blocks, visible, keys_of, sizes, window, scale, acc):
    """Output [B, G, R, C, V] of one block of queries over `blocks` of keys; scores are held for one block of keys at a time.

    keys_of(block) -> Keys; visible(block): whether any query sees a key of the block, which is skipped if not. sizes: (G, V).
    """
    batch, time, heads, _ = q_BCHK.shape
    kv_heads, value_size = sizes

    def attend(carry, block):
        top, total, y_BGRCV = carry
        keys = keys_of(block)
        scores = _scores(q_BCHK, keys, _mask(n_BC, seg_BC, keys, window), scale, acc)
        new_top = jax.lax.stop_gradient(jnp.maximum(top, jnp.max(scores, axis=-1)))  # the result does not depend on it
        shift = jnp.where(jnp.isneginf(new_top), 0, new_top)  # no visible key yet: exp(-inf - 0) = 0, not NaN
        p_BGRCS, keep = jnp.exp(scores - shift[..., None]), jnp.exp(top - shift)
        total = keep * total + jnp.sum(p_BGRCS, axis=-1)
        return new_top, total, keep[..., None] * y_BGRCV + _weighted(p_BGRCS, keys.v_BSGV, acc)

    def body(carry, block):
        return jax.lax.cond(visible(block), attend, lambda carry, _: carry, carry, block), None

    shape = (batch, kv_heads, heads // kv_heads, time)
    start = jnp.full(shape, -jnp.inf, acc), jnp.zeros(shape, acc), jnp.zeros((*shape, value_size), acc)
    (_, total, y_BGRCV), _ = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), start, blocks)
    return y_BGRCV / jnp.where(total > 0, total, 1)[..., None]


def chunkwise(q_BTHK, k_BTGK, v_BTGV, *, state=None, pos=None, window=None, scale=None, chunk: int = 128):
    """Blocks of `chunk` queries by blocks of `chunk` keys with an online softmax; the backward pass recomputes the scores."""
    if q_BTHK.shape[1] <= chunk:
        return parallel(q_BTHK, k_BTGK, v_BTGV, state=state, pos=pos, window=window, scale=scale)
    scale, q_BTHK, k_BTGK, v_BTGV, pos_BT = _prepare(q_BTHK, k_BTGK, v_BTGV, state, pos, window, scale)
    acc, time = _time.accumulation_dtype(q_BTHK, v_BTGV), q_BTHK.shape[1]
    n_BT, seg_BT, keys = gather_keys(state, k_BTGK, v_BTGV, pos_BT)
    # split_chunks pads its first argument with -1, which as a key index means masked.
    n_ZBC, *rest = _time.split_chunks(chunk, keys.n_BS, keys.k_BSGK, keys.v_BSGV, keys.seg_BS)
    chunks = Keys(rest[0], rest[1], n_ZBC, rest[2])

    def block(inputs):
        n_BC, seg_BC, q_BCHK = inputs
        visible = lambda keys: jnp.any(_mask(n_BC, seg_BC, keys, window))  # noqa: E731
        sizes = v_BTGV.shape[2:]
        y = _online_softmax(q_BCHK, n_BC, seg_BC, chunks, visible, lambda keys: keys, sizes, window, scale, acc)
        return jnp.moveaxis(y, 3, 1)

    y = jax.lax.map(jax.checkpoint(block, prevent_cse=False), _time.split_chunks(chunk, n_BT, seg_BT, q_BTHK))
    y_BTGRV = _time.join_chunks(y, time)
    before = _empty(k_BTGK, v_BTGV, _size(None, window, time)) if state is None else state
    y_BTHV = _time.select(_time.valid(pos_BT), y_BTGRV.reshape(*q_BTHK.shape[:3], -1))
    return y_BTHV.astype(q_BTHK.dtype), next_state(before, k_BTGK, v_BTGV, pos_BT)


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}


def example(key: jax.Array, batch: int, time: int, dtype=jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`."""
    window = 12

    def inputs(key, time):
        keys = jax.random.split(key, 3)
        shapes = (batch, time, 4, 6), (batch, time, 2, 6), (batch, time, 2, 5)
        return tuple(jax.random.normal(k, shape, dtype) for k, shape in zip(keys, shapes, strict=True))

    key_x, key_prefix = jax.random.split(key)
    state = recurrent(*inputs(key_prefix, 15), window=window)[1]
    return Example(inputs(key_x, time), {}, {"window": window}, state)


def stress(key: jax.Array, batch: int, time: int, dtype=jnp.float32) -> dict[str, Example]:
    """The log-decays of `stresses` become score differences: none, small, about 50, and a mix of these."""
    base = example(key, batch, time, dtype)
    q_BTHK, *kv = base.xs

    def sharpened(log_BTH1):
        return base._replace(xs=(q_BTHK * jnp.clip(log_BTH1, -50, 0), *kv))

    return stresses(key, base, (*q_BTHK.shape[:3], 1), sharpened)
