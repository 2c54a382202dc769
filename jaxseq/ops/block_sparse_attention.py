"""Causal softmax attention to chosen blocks of keys, as in the selected branch of Native Sparse Attention (Yuan et al. 2025,
arXiv:2502.11089, eq. 11 and 12).

    y_t = sum_s softmax_s(scale q_t . k_s) v_s,   s over the tokens of the document with s <= t and s // block in index_t

index_BTGA [B, T, G, A] int32 are the blocks of each query and key head: block i holds the tokens i block to (i + 1) block - 1
of the query's document. -1 is no block; a block that is named twice counts once, and blocks after the query's own are ignored.
A query without a block has y = 0. The indices have no gradient. As in `attention`, H query heads share G key/value heads;
`scale` is 1 / sqrt(K) by default. `compressed_attention.select` chooses blocks.

The recurrent and the chunkwise form read only the A block keys of each query; the parallel form masks all scores.

State: that of `attention` without a window, the keys and values of the document. Scores and sums are in the accumulation dtype.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq import compat
from jaxseq.ops import _attend, _time, attention
from jaxseq.ops._attend import Keys, Score, Span
from jaxseq.ops._example import Example, stresses
from jaxseq.ops.attention import AttentionState, init_state

__all__ = ["AttentionState", "chunkwise", "example", "init_state", "parallel", "recurrent", "stress"]


def _prepare(q_BTHK, k_BTGK, v_BTGV, index_BTGA, state, pos, block, scale):
    chex.assert_rank(index_BTGA, 4)
    chex.assert_equal_shape_prefix([k_BTGK, index_BTGA], 3)
    chex.assert_type(index_BTGA, int)
    chex.assert_scalar_positive(block)
    scale, *xs, pos_BT = attention._prepare(q_BTHK, k_BTGK, v_BTGV, state, pos, None, scale)
    return scale, *xs, _time.select(_time.valid(pos_BT), index_BTGA, -1), pos_BT


def _once(index_BTGA: jax.Array, n_BT: jax.Array, block: int) -> jax.Array:
    """The indices of each query, with -1 for blocks after that of token n and for blocks that were named before."""
    last_BT11 = (n_BT // block)[..., None, None]
    equal_BTGAA = index_BTGA[..., :, None] == index_BTGA[..., None, :]
    again_BTGA = jnp.any(jnp.tril(equal_BTGAA, -1), axis=-1)
    return jnp.where((index_BTGA <= last_BT11) & ~again_BTGA, jnp.maximum(index_BTGA, -1), -1)


def _weights(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """softmax over the last axis where `mask` is true; zero if it is true nowhere."""
    some = jnp.any(mask, axis=-1, keepdims=True)  # an empty softmax has NaN gradients
    scores = jnp.where(some, jnp.where(mask, scores, -jnp.inf), 0)
    return jnp.where(mask, jax.nn.softmax(scores, axis=-1), 0)


def _masked(q_BTHK, keys: Keys, span: Span, index_BTGA, scale: float, block: int) -> jax.Array:
    """y [B, T, H, V] from the scores of all keys."""
    acc = _time.accumulation_dtype(q_BTHK, keys.v_BGSV)
    block_BTS = (keys.number_BS[:, None] - span.low_BT[..., None]) // block
    chosen_BTGS = jnp.any(index_BTGA[..., None, :] == block_BTS[:, :, None, :, None], axis=-1)
    mask_BGTS = jnp.moveaxis(chosen_BTGS & _attend.visible(span, keys.number_BS)[:, :, None], 2, 1)
    scores_BGRTS = _attend._scores(_attend.grouped(q_BTHK, keys.k_BGSK.shape[1]), keys, span, Score(scale), acc)
    return _attend._heads_last(_attend._weighted(_weights(scores_BGRTS, mask_BGTS[:, :, None]), keys.v_BGSV, acc))


def _gathered(q_BCHK, k_BGSK, v_BGSV, span: Span, index_BCGA, find: Callable, scale: float, block: int) -> jax.Array:
    """y [B, C, H, V] from the keys of the chosen blocks alone.

    find(numbers [B, C, ...]) -> (where the keys with these numbers are in k_BGSK, whether they are there).
    """
    acc, groups = _time.accumulation_dtype(q_BCHK, v_BGSV), k_BGSK.shape[1]
    number_BCGAJ = span.low_BT[..., None, None, None] + index_BCGA[..., None] * block + jnp.arange(block, dtype=jnp.int32)
    number_BCGS = jax.lax.collapse(number_BCGAJ, 3)
    seen_BCGS = jnp.repeat(index_BCGA >= 0, block, axis=3) & (number_BCGS <= span.high_BT[..., None, None])
    place_BCGS, there_BCGS = find(number_BCGS)
    mask_BGCS, place_BGCS = (jnp.moveaxis(x, 2, 1) for x in (seen_BCGS & there_BCGS, jnp.where(seen_BCGS, place_BCGS, 0)))

    def take(x_BGSK):
        flat_BGN1 = jax.lax.collapse(place_BGCS, 2)[..., None]
        return jnp.take_along_axis(x_BGSK, flat_BGN1, axis=2, mode="clip").reshape(*place_BGCS.shape, x_BGSK.shape[3])

    k_BGCSK, v_BGCSV = take(k_BGSK), take(v_BGSV)
    q_BGCRK = jnp.swapaxes(_attend.grouped(q_BCHK, groups), 2, 3)
    scores_BGCRS = compat.einsum("bgcrk,bgcsk->bgcrs", q_BGCRK, k_BGCSK, dtype=acc) * scale
    p_BGCRS = _weights(scores_BGCRS, mask_BGCS[:, :, :, None]).astype(v_BGCSV.dtype)
    y_BGCRV = compat.einsum("bgcrs,bgcsv->bgcrv", p_BGCRS, v_BGCSV, dtype=acc)
    return jax.lax.collapse(jnp.moveaxis(y_BGCRV, 1, 2), 2, 4)


def recurrent(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGV: jax.Array, index_BTGA: jax.Array, *, block: int,
    state: AttentionState | None = None, pos: jax.Array | None = None, scale: float | None = None,
) -> tuple[jax.Array, AttentionState]:  # fmt: skip
    """One token after another: write its key and value into the ring buffer, then attend to the chosen blocks of the buffer."""
    prepared = _prepare(q_BTHK, k_BTGK, v_BTGV, index_BTGA, state, pos, block, scale)
    factor, *xs, pos_BT = prepared
    state = attention._empty(k_BTGK, v_BTGV, q_BTHK.shape[1]) if state is None else state
    if q_BTHK.shape[1] == 0:
        return attention._no_tokens(q_BTHK, v_BTGV), state

    def step(state, q_BHK, k_BGK, v_BGV, index_BGA):
        state, size = attention._write(state, k_BGK, v_BGV), state.k_BGSK.shape[2]
        last_B1 = state.count_B[:, None] - 1
        span, index_B1GA = Span(jnp.zeros_like(last_B1), last_B1), _once(index_BGA[:, None], last_B1, block)

        def find(number):
            return number % size, number > _time.expand(last_B1, number) - size

        y_B1HV = _gathered(q_BHK[:, None], state.k_BGSK, state.v_BGSV, span, index_B1GA, find, factor, block)
        return state, y_B1HV[:, 0].astype(q_BHK.dtype)

    return _time.scan_time(step, state, xs, pos_BT)


def _all_at_once(q_BTHK, k_BTGK, v_BTGV, index_BTGA, state, pos, block, scale, chunk):
    """All tokens against the slots of the state and all tokens; with `chunk` only the chosen keys are read."""
    prepared = _prepare(q_BTHK, k_BTGK, v_BTGV, index_BTGA, state, pos, block, scale)
    scale, q_BTHK, k_BTGK, v_BTGV, index_BTGA, pos_BT = prepared
    before = attention._empty(k_BTGK, v_BTGV, q_BTHK.shape[1]) if state is None else state
    if q_BTHK.shape[1] == 0:
        return attention._no_tokens(q_BTHK, v_BTGV), before
    span, keys = attention.gather(state, k_BTGK, v_BTGV, pos_BT, None)
    span = Span(_time.select(_time.valid(pos_BT), span.low_BT), span.high_BT)  # low: the number of the document's first token
    index_BTGA = _once(index_BTGA, span.high_BT - span.low_BT, block)
    if chunk is None:
        y_BTHV = _masked(q_BTHK, keys, span, index_BTGA, scale, block)
    else:
        y_BTHV = _chunks(q_BTHK, keys, span, index_BTGA, before.count_B, scale, block, chunk)
    return attention.finish(y_BTHV, y_BTHV, None, pos_BT, q_BTHK.dtype), attention.next_state(before, k_BTGK, v_BTGV, pos_BT)


def _chunks(q_BTHK, keys: Keys, span: Span, index_BTGA, count_B, scale: float, block: int, chunk: int) -> jax.Array:
    """`_gathered` for chunks of queries. Keys with numbers below the state's count are in its slots, the first keys."""
    time = q_BTHK.shape[1]
    slots = keys.number_BS.shape[1] - time

    def find(number):
        count = _time.expand(count_B, number)
        place = jnp.where(number < count, number % max(slots, 1), slots + number - count)
        return place, number >= count - slots

    def queries(row):
        high_BC, low_BC, q_BCHK, index_BCGA = row
        return _gathered(q_BCHK, keys.k_BGSK, keys.v_BGSV, Span(low_BC, high_BC), index_BCGA, find, scale, block)

    rows = _time.split_chunks(min(chunk, time), span.high_BT, span.low_BT, q_BTHK, index_BTGA)  # the padding's `high` is -1
    return _time.join_chunks(jax.lax.map(jax.checkpoint(queries, prevent_cse=False), rows), time)


def parallel(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGV: jax.Array, index_BTGA: jax.Array, *, block: int,
    state: AttentionState | None = None, pos: jax.Array | None = None, scale: float | None = None,
) -> tuple[jax.Array, AttentionState]:  # fmt: skip
    """The whole T x (S + T) score matrix at once, masked."""
    return _all_at_once(q_BTHK, k_BTGK, v_BTGV, index_BTGA, state, pos, block, scale, None)


def chunkwise(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGV: jax.Array, index_BTGA: jax.Array, *, block: int,
    state: AttentionState | None = None, pos: jax.Array | None = None, scale: float | None = None, chunk: int = 32,
) -> tuple[jax.Array, AttentionState]:  # fmt: skip
    """Gathers the chosen keys of `chunk` queries at a time: A block products per query instead of T. The backward pass
    gathers them again, so memory is linear in T."""
    return _all_at_once(q_BTHK, k_BTGK, v_BTGV, index_BTGA, state, pos, block, scale, chunk)


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}
CUT = "ring"


def _inputs(key: jax.Array, batch: int, time: int, tokens: int, dtype: DTypeLike) -> tuple[jax.Array, ...]:
    """Random inputs; the indices are of the blocks of a document of `tokens` tokens, and some are -1."""
    keys = jax.random.split(key, 4)
    shapes = (batch, time, 4, 6), (batch, time, 2, 6), (batch, time, 2, 5)
    qkv = (jax.random.normal(k, shape, dtype) for k, shape in zip(keys, shapes, strict=False))
    return *qkv, jax.random.randint(keys[3], (batch, time, 2, 4), -1, -(-tokens // 4), jnp.int32)


def _example(key: jax.Array, batch: int, time: int, slots: int, dtype: DTypeLike) -> Example:
    """An example whose state has `slots` slots, with a prefix of 15 tokens in them."""
    key_x, key_prefix = jax.random.split(key)
    empty, prefix = init_state(batch, slots, 2, 6, 5, dtype), _inputs(key_prefix, batch, 15, 15, dtype)
    return Example(_inputs(key_x, batch, time, 15 + time, dtype), {}, {"block": 4}, recurrent(*prefix, state=empty, block=4)[1])


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`. The state has T slots, at least 15."""
    return _example(key, batch, time, max(time, 15), dtype)


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """The log-decays of `stresses` become score differences: none, small, about 50, and a mix of these."""
    base = _example(key, batch, time, 15 + time, dtype)
    q_BTHK, *rest = base.xs

    def sharpened(log_BTH1):
        return base._replace(xs=(q_BTHK * jnp.clip(log_BTH1, -50, 0), *rest))

    return stresses(key, base, (*q_BTHK.shape[:3], 1), sharpened)
