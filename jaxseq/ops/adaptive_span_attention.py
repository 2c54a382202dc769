"""Softmax attention with a learned span per head (Adaptive Attention Span, Sukhbaatar et al. 2019, arXiv:1905.07799, §2.2).

    y_t = sum_s m(t - s) exp(scale q_t . k_s) v_s / sum_s m(t - s) exp(scale q_t . k_s)
    m(x) = clip((ramp + span - x) / ramp, 0, 1)

over the tokens of the document with t - window < s <= t. A head sees the last `span` tokens in full and those before them less
and less, over `ramp` tokens; its span >= 0 is any real number, and y is differentiable in it. A token sees itself too; in the
paper only those before it. H query heads share G key/value heads as in `attention`; each query head has its own span; `scale`
is 1 / sqrt(K) by default.

`window` is the number of slots of the state. A window of at least ramp + the longest span cuts nothing off.

State: the ring buffer of `attention`. Scores, log m and sums are in the accumulation dtype.
"""

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq.ops import _attend, _time, attention
from jaxseq.ops._attend import Keys, Score, Span, attend
from jaxseq.ops._example import Example, stresses
from jaxseq.ops.attention import AttentionState, init_state

__all__ = ["CUT", "FORMS", "chunkwise", "example", "init_state", "parallel", "recurrent", "stress"]

UNSEEN = -1e30  # for log 0: with -inf a block of keys that a head does not see would have an empty softmax


def _prepare(q_BTHK, k_BTGK, v_BTGV, span_H, window, state, pos, scale):
    chex.assert_scalar_positive(window)
    chex.assert_shape(span_H, q_BTHK.shape[2:3])
    scale, q_BTHK, k_BTGK, v_BTGV, pos_BT = attention._prepare(q_BTHK, k_BTGK, v_BTGV, state, pos, window, scale)
    state = attention._empty(k_BTGK, v_BTGV, window) if state is None else state
    chex.assert_axis_dimension(state.k_BGSK, 2, window)
    return scale, state, pos_BT, span_H.astype(_time.accumulation_dtype(q_BTHK, span_H)), q_BTHK, k_BTGK, v_BTGV


def _log_mask(high_BT, number_BS, span_H, ramp) -> jax.Array:
    """log m [B, H, T, S] for queries and keys with these numbers."""
    back_B1TS = (high_BT[:, :, None] - number_BS[:, None])[:, None].astype(span_H.dtype)
    m_BHTS = jnp.clip((ramp + span_H[:, None, None] - back_B1TS) / ramp, 0, 1)
    return jnp.where(m_BHTS > 0, jnp.log(jnp.where(m_BHTS > 0, m_BHTS, 1)), UNSEEN)


def _attended(q_BTHK, keys: Keys, span: Span, scale, span_H, ramp):
    """`attend` with all scores at once."""
    return attend(q_BTHK, keys, span, Score(scale, bias_BHTS=_log_mask(span.high_BT, keys.number_BS, span_H, ramp)))


def recurrent(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGV: jax.Array, *, span_H: jax.Array, window: int, ramp: float = 32.0,
    state: AttentionState | None = None, pos: jax.Array | None = None, scale: float | None = None,
) -> tuple[jax.Array, AttentionState]:  # fmt: skip
    """One token after another: write its key and value into the ring buffer, then attend to the buffer."""
    factor, before, pos_BT, span_H, *xs = _prepare(q_BTHK, k_BTGK, v_BTGV, span_H, window, state, pos, scale)
    if q_BTHK.shape[1] == 0:
        return attention._no_tokens(q_BTHK, v_BTGV), before

    def step(state, q_BHK, k_BGK, v_BGV):
        state = attention._write(state, k_BGK, v_BGV)
        keys = Keys(state.k_BGSK, state.v_BGSV, attention._slots(state.count_B, window))
        y_BTHV, _ = _attended(q_BHK[:, None], keys, attention._latest(state.count_B, window), factor, span_H, ramp)
        return state, y_BTHV[:, 0].astype(q_BHK.dtype)

    return _time.scan_time(step, before, xs, pos_BT)


def _all_at_once(q_BTHK, k_BTGK, v_BTGV, span_H, window, ramp, state, pos, scale, chunk):
    """All tokens against the slots of the state and all tokens; in blocks if T > chunk."""
    prepared = _prepare(q_BTHK, k_BTGK, v_BTGV, span_H, window, state, pos, scale)
    factor, before, pos_BT, span_H, q_BTHK, k_BTGK, v_BTGV = prepared
    if (time := q_BTHK.shape[1]) == 0:
        return attention._no_tokens(q_BTHK, v_BTGV), before
    span, keys = attention.gather(state, k_BTGK, v_BTGV, pos_BT, window)
    if chunk is None or time <= chunk:
        y_BTHV, lse_BTH = _attended(q_BTHK, keys, span, factor, span_H, ramp)
    else:
        y_BTHV, lse_BTH = _blocks(q_BTHK, keys, span, factor, span_H, ramp, chunk)
    y_BTHV = attention.finish(y_BTHV, lse_BTH, None, pos_BT, q_BTHK.dtype)
    return y_BTHV, attention.next_state(before, k_BTGK, v_BTGV, pos_BT)


def _blocks(q_BTHK, keys: Keys, span: Span, scale, span_H, ramp, chunk: int):
    """`_attended` for blocks of queries by blocks of keys. Blocks that no query or no head sees are skipped, so the cost depends
    on the learned spans. The backward pass stores the results of one block of queries at a time: memory is linear in T."""
    far = jnp.ceil(jnp.minimum(jax.lax.stop_gradient(jnp.max(span_H)) + ramp, _attend.NEVER / 2)).astype(jnp.int32)
    seen_BT = span.low_BT <= span.high_BT
    low_BT = jnp.where(seen_BT, jnp.maximum(span.low_BT, span.high_BT - far + 1), span.low_BT)
    high_ZBC, low_ZBC, q_ZBCHK = _time.split_chunks(chunk, span.high_BT, low_BT, q_BTHK)
    k_BSGK, v_BSGV = jnp.swapaxes(keys.k_BGSK, 1, 2), jnp.swapaxes(keys.v_BGSV, 1, 2)
    number_UBC, k_UBCGK, v_UBCGV = _time.split_chunks(chunk, keys.number_BS, k_BSGK, v_BSGV)
    blocks = Keys(jnp.swapaxes(k_UBCGK, 2, 3), jnp.swapaxes(v_UBCGV, 2, 3), number_UBC)
    spans = Span(low_ZBC, high_ZBC)

    def queries(row):
        q_BCHK, span, need_U = row

        def add(part, inputs):
            block, need = inputs
            merged = lambda part: _attend.merge(part, _attended(q_BCHK, block, span, scale, span_H, ramp))  # noqa: E731
            return jax.lax.cond(need, merged, lambda part: part, part), None

        acc, shape = _time.accumulation_dtype(q_BCHK, span_H), q_BCHK.shape[:3]
        start = jnp.zeros((*shape, v_BSGV.shape[3]), acc), jnp.full(shape, -jnp.inf, acc)
        return jax.lax.scan(jax.checkpoint(add, prevent_cse=False), start, (blocks, need_U))[0]

    rows = q_ZBCHK, spans, _attend.needed(spans, number_UBC)
    y_ZBCHV, lse_ZBCH = jax.lax.map(jax.checkpoint(queries, prevent_cse=False), rows)
    return _time.join_chunks(y_ZBCHV, q_BTHK.shape[1]), _time.join_chunks(lse_ZBCH, q_BTHK.shape[1])


def parallel(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGV: jax.Array, *, span_H: jax.Array, window: int, ramp: float = 32.0,
    state: AttentionState | None = None, pos: jax.Array | None = None, scale: float | None = None,
) -> tuple[jax.Array, AttentionState]:  # fmt: skip
    """The whole T x (S + T) score matrix at once."""
    return _all_at_once(q_BTHK, k_BTGK, v_BTGV, span_H, window, ramp, state, pos, scale, None)


def chunkwise(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGV: jax.Array, *, span_H: jax.Array, window: int, ramp: float = 32.0,
    state: AttentionState | None = None, pos: jax.Array | None = None, scale: float | None = None, chunk: int = 128,
) -> tuple[jax.Array, AttentionState]:  # fmt: skip
    """Blocks of `chunk` queries by blocks of `chunk` keys, without those beyond the longest span."""
    return _all_at_once(q_BTHK, k_BTGK, v_BTGV, span_H, window, ramp, state, pos, scale, chunk)


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}
CUT = "ring"


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, spans and state, see `jaxseq.ops.Example`. The window cuts off the longest span."""

    def inputs(key, time) -> tuple[jax.Array, ...]:
        keys = jax.random.split(key, 3)
        shapes = (batch, time, 4, 6), (batch, time, 2, 6), (batch, time, 2, 5)
        return tuple(jax.random.normal(k, shape, dtype) for k, shape in zip(keys, shapes, strict=True))

    key_x, key_prefix, key_span = jax.random.split(key, 3)
    acc, options = jnp.promote_types(dtype, jnp.float32), {"window": 12, "ramp": 4.0}
    weights = {"span_H": jnp.arange(4, dtype=acc) * 3 + jax.random.uniform(key_span, (4,), acc, 0.1, 0.9)}
    state = recurrent(*inputs(key_prefix, 15), **weights, **options)[1]
    return Example(inputs(key_x, time), weights, options, state)


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """The log-decays of `stresses` become score differences: none, small, about 50, and a mix of these."""
    base = example(key, batch, time, dtype)
    q_BTHK, *kv = base.xs

    def sharpened(log_BTH1):
        return base._replace(xs=(q_BTHK * jnp.clip(log_BTH1, -50, 0), *kv))

    return stresses(key, base, (*q_BTHK.shape[:3], 1), sharpened)
