"""Causal softmax attention to chosen blocks of keys, as in the selected branch of Native Sparse Attention (Yuan et al. 2025,
arXiv:2502.11089, eq. 11 and 12).

    y_t = sum_s softmax_s(scale q_t . k_s) v_s,   s over the tokens of the document with s <= t and s // block in index_t

index_BTGA [B, T, G or 1, A] int32 are the blocks of each query and key head, or of all heads: block i holds the tokens i block to
(i + 1) block - 1 of the query's document. -1 is no block; a block that is named twice counts once, and blocks after the query's
own are ignored.
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
    chex.assert_shape(index_BTGA, (*k_BTGK.shape[:2], {1, k_BTGK.shape[2]}, None))
    chex.assert_type(index_BTGA, int)
    chex.assert_scalar_positive(block)
    scale, *xs, pos_BT = attention._prepare(q_BTHK, k_BTGK, v_BTGV, state, pos, None, scale)
    return scale, *xs, _time.select(_time.valid(pos_BT), index_BTGA, -1), pos_BT


def _once(index_BTGA: jax.Array, n_BT: jax.Array, block: int) -> jax.Array:
    """The indices of each query in increasing order, with -1 for blocks after that of token n and for repetitions."""
    last_BT11 = (n_BT // block)[..., None, None]
    index_BTGA = jnp.sort(jnp.where(index_BTGA <= last_BT11, jnp.maximum(index_BTGA, -1), -1), axis=-1)
    again_BTGA = jnp.diff(index_BTGA, axis=-1, prepend=-1) == 0
    return jnp.where(again_BTGA, -1, index_BTGA)


def taken(x_BGSK: jax.Array, place_BGCS: jax.Array) -> jax.Array:
    """The vectors [B, G, C, S, K] at these places, which may be the same for all heads (G = 1 of `place`)."""
    flat_BGN1 = jax.lax.collapse(place_BGCS, 2)[..., None]
    return jnp.take_along_axis(x_BGSK, flat_BGN1, axis=2, mode="clip").reshape(*x_BGSK.shape[:2], *place_BGCS.shape[2:], -1)


def finder(count_B: jax.Array, slots: int) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """A function of numbers [B, ...] as `attention.gather` gives them: (the places of the keys with these numbers among the keys
    of `attention.gather`, whether they are there). Keys with numbers below the state's count are in its slots, the first keys."""

    def find(number):
        count = _time.expand(count_B, number)
        place = jnp.where(number < count, number % max(slots, 1), slots + number - count)
        return place, number >= count - slots

    return find


def weights(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """softmax over the last axis where `mask` is true; zero if it is true nowhere."""
    some = jnp.any(mask, axis=-1, keepdims=True)  # an empty softmax has NaN gradients
    scores = jnp.where(some, jnp.where(mask, scores, -jnp.inf), 0)
    return jnp.where(mask, jax.nn.softmax(scores, axis=-1), 0)


def _masked(q_BTHK, keys: Keys, span: Span, index_BTGA, oldest_B, scale: float, block: int) -> jax.Array:
    """y [B, T, H, V] from the scores of all keys. oldest_B: no key has a lower number."""
    acc, index_BTGA = _time.accumulation_dtype(q_BTHK, keys.v_BGSV), _once(index_BTGA, span.high_BT - span.low_BT, block)
    first_BT = (oldest_B[:, None] - span.low_BT) // block  # the block of number `oldest`; negative for later documents
    blocks = keys.number_BS.shape[1] // block + 2
    place_BTGA = jnp.where(index_BTGA >= 0, index_BTGA - first_BT[..., None, None], -1)
    place_BTGA = jnp.where(place_BTGA >= 0, place_BTGA, blocks)  # dropped
    mark = lambda place_A: jnp.zeros(blocks, bool).at[place_A].set(True, mode="drop")  # noqa: E731
    chosen_BTGN = jax.vmap(jax.vmap(jax.vmap(mark)))(place_BTGA)
    place_BTS = (keys.number_BS[:, None] - span.low_BT[..., None]) // block - first_BT[..., None]
    chosen_BTGS = jnp.take_along_axis(chosen_BTGN, jnp.clip(place_BTS, 0, blocks - 1)[:, :, None], axis=3)
    mask_BGTS = jnp.moveaxis(chosen_BTGS & _attend.visible(span, keys.number_BS)[:, :, None], 2, 1)
    scores_BGRTS = _attend._scores(_attend.grouped(q_BTHK, keys.k_BGSK.shape[1]), keys, span, Score(scale), acc)
    return _attend._heads_last(_attend._weighted(weights(scores_BGRTS, mask_BGTS[:, :, None]), keys.v_BGSV, acc))


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
    k_BGCSK, v_BGCSV = taken(k_BGSK, place_BGCS), taken(v_BGSV, place_BGCS)
    q_BGCRK = jnp.swapaxes(_attend.grouped(q_BCHK, groups), 2, 3)
    scores_BGCRS = compat.einsum("bgcrk,bgcsk->bgcrs", q_BGCRK, k_BGCSK, dtype=acc) * scale
    p_BGCRS = weights(scores_BGCRS, mask_BGCS[:, :, :, None]).astype(v_BGCSV.dtype)
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
    if chunk is None:
        oldest_B = before.count_B - (keys.number_BS.shape[1] - q_BTHK.shape[1])
        y_BTHV = _masked(q_BTHK, keys, span, index_BTGA, oldest_B, scale, block)
    else:
        y_BTHV = _chunks(q_BTHK, keys, span, index_BTGA, before.count_B, scale, block, chunk)
    return attention.finish(y_BTHV, y_BTHV, None, pos_BT, q_BTHK.dtype), attention.next_state(before, k_BTGK, v_BTGV, pos_BT)


def _chunks(q_BTHK, keys: Keys, span: Span, index_BTGA, count_B, scale: float, block: int, chunk: int) -> jax.Array:
    """`_gathered` for chunks of queries."""
    time = q_BTHK.shape[1]
    find = finder(count_B, keys.number_BS.shape[1] - time)

    def queries(row):
        high_BC, low_BC, q_BCHK, index_BCGA = row
        index_BCGA = _once(index_BCGA, high_BC - low_BC, block)
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
    state: AttentionState | None = None, pos: jax.Array | None = None, scale: float | None = None, chunk: int = 64,
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
