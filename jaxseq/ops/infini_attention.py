"""Softmax attention inside a segment and a memory of fixed size for all segments before it (Infini-attention, Munkhdalai et al.
2024, arXiv:2404.07143, §2.1).

    y_t = g m_t + (1 - g) sum_s softmax_s(scale q_t . k_s) v_s,   s <= t in the segment of t,   g = sigmoid(gate_h)   (eq. 10)
    m_t = f(r_t) M / (f(r_t) . z)                                                                                  (eq. 6)

Segment i of a document is its tokens i segment to (i + 1) segment - 1. M and z are sums over the tokens u of the document's
earlier segments, f(x) = elu(x) + 1:

    z = sum_u f(w_u),   M = sum_u f(w_u)^T v_u                                                                      (eq. 7)
    M = sum_u f(w_u)^T (v_u - f(w_u) M_u / (f(w_u) . z_u))   with `delta`; M_u and z_u before the segment of u       (eq. 8)

A retrieval from an empty memory is 0. In the paper r and w are q and k before their rotation. As in `attention`, H query heads
share G key/value heads, whose memory they share too; `scale` is 1 / sqrt(K) by default.

f is computed as exp(log f): f(r), and f(w) where it reads, enter as quotients, so their largest channel is scaled to 1.

State: the keys and values of the segment so far, in the ring buffer of `attention` with `segment` slots, and two memories, in
the accumulation dtype: that of the complete segments, and what the tokens of the segment so far will add to it.
"""

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.typing import DTypeLike

from jaxseq import compat
from jaxseq.ops import _time, attention
from jaxseq.ops._attend import Keys, Score, Span, attend
from jaxseq.ops._example import Example, stresses
from jaxseq.ops.attention import AttentionState


class InfiniState(NamedTuple):
    """The memory is [M, z]: its last column is z."""

    ring: AttentionState  # of the segment so far; its count is the document's tokens
    memory_BGKV: jax.Array
    added_BGKV: jax.Array  # by the segment so far


def init_state(
    batch: int, segment: int, kv_heads: int, key_size: int, value_size: int, memory_size: int | None = None,
    dtype: DTypeLike = jnp.float32,
) -> InfiniState:  # fmt: skip
    """The empty state. memory_size: channels of r and w, K by default."""
    ring = attention.init_state(batch, segment, kv_heads, key_size, value_size, dtype)
    acc = jnp.promote_types(dtype, jnp.float32)
    memory_BGKV = jnp.zeros((batch, kv_heads, memory_size or key_size, value_size + 1), acc)
    return InfiniState(ring, memory_BGKV, memory_BGKV)


def _prepare(q_BTHK, k_BTGK, v_BTGV, read_BTHK, write_BTGK, gate_H, state, pos, segment, scale):
    chex.assert_scalar_positive(segment)
    chex.assert_rank([read_BTHK, write_BTGK], 4)
    chex.assert_equal_shape_prefix([q_BTHK, read_BTHK], 3)
    chex.assert_equal_shape_prefix([k_BTGK, write_BTGK], 3)
    chex.assert_axis_dimension(write_BTGK, 3, read_BTHK.shape[3])
    chex.assert_shape(gate_H, q_BTHK.shape[2:3])
    ring = None if state is None else state.ring
    scale, q_BTHK, k_BTGK, v_BTGV, pos_BT = attention._prepare(q_BTHK, k_BTGK, v_BTGV, ring, pos, segment, scale)
    read_BTHK, write_BTGK = _time.clean(pos_BT, read_BTHK, write_BTGK)
    if state is None:
        batch, _, kv_heads, key_size = k_BTGK.shape
        state = init_state(batch, segment, kv_heads, key_size, v_BTGV.shape[3], write_BTGK.shape[3], k_BTGK.dtype)
    chex.assert_axis_dimension(state.ring.k_BGSK, 2, segment)
    return scale, state, (q_BTHK, k_BTGK, v_BTGV, read_BTHK, write_BTGK), pos_BT


def _log_feature(x: jax.Array, acc: DTypeLike) -> jax.Array:
    """log(elu(x) + 1)."""
    x = x.astype(acc)
    return jnp.where(x < 0, x, jnp.log1p(jnp.maximum(x, 0)))


def _feature(x: jax.Array, acc: DTypeLike) -> jax.Array:
    return jnp.exp(_log_feature(x, acc))


def _scaled_feature(x: jax.Array, acc: DTypeLike) -> jax.Array:
    """The feature, divided by its largest channel."""
    x = _log_feature(x, acc)
    return jnp.exp(x - jax.lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True)))


def _divided(sums_V: jax.Array) -> jax.Array:
    """M / z of [M, z]; 0 where z is 0."""
    z_1 = sums_V[..., -1:]
    return jnp.where(z_1 > 0, sums_V[..., :-1] / jnp.where(z_1 > 0, z_1, 1), 0)


def _with_one(v_V: jax.Array, acc: DTypeLike) -> jax.Array:
    return jnp.concatenate([v_V.astype(acc), jnp.ones((*v_V.shape[:-1], 1), acc)], axis=-1)


def _mixed(near_BTHV: jax.Array, far_BTHV: jax.Array, gate_H: jax.Array) -> jax.Array:
    g_H1 = jax.nn.sigmoid(gate_H.astype(far_BTHV.dtype))[:, None]
    return g_H1 * far_BTHV + (1 - g_H1) * near_BTHV


def recurrent(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGV: jax.Array, read_BTHK: jax.Array, write_BTGK: jax.Array, *, gate_H: jax.Array,
    segment: int, delta: bool = True, state: InfiniState | None = None, pos: jax.Array | None = None, scale: float | None = None,
) -> tuple[jax.Array, InfiniState]:  # fmt: skip
    """One token after another. The memory changes at the first token of a segment."""
    prepared = _prepare(q_BTHK, k_BTGK, v_BTGV, read_BTHK, write_BTGK, gate_H, state, pos, segment, scale)
    factor, before, xs, pos_BT = prepared
    if q_BTHK.shape[1] == 0:
        return attention._no_tokens(q_BTHK, v_BTGV), before
    acc, kv_heads = before.memory_BGKV.dtype, k_BTGK.shape[2]

    def step(state, q_BHK, k_BGK, v_BGV, read_BHK, write_BGK):
        n_B = state.ring.count_B
        begins_B = n_B % segment == 0
        memory_BGKV = state.memory_BGKV + _time.select(begins_B, state.added_BGKV)
        ring = attention._write(state.ring, k_BGK, v_BGV)
        keys = Keys(ring.k_BGSK, ring.v_BGSV, attention._slots(ring.count_B, segment))
        span = Span((n_B // segment * segment)[:, None], n_B[:, None])
        near_B1HV, _ = attend(q_BHK[:, None], keys, span, Score(factor))
        read_BGRK = _scaled_feature(read_BHK, acc).reshape(n_B.shape[0], kv_heads, -1, read_BHK.shape[2])
        sums_BGRV = compat.einsum("bgrk,bgkv->bgrv", read_BGRK, memory_BGKV, dtype=acc)
        y_BHV = _mixed(near_B1HV[:, 0], _divided(sums_BGRV).reshape(near_B1HV[:, 0].shape), gate_H)
        new_BGV = _with_one(v_BGV, acc)
        if delta:
            known_BGV = compat.einsum("bgk,bgkv->bgv", _scaled_feature(write_BGK, acc), memory_BGKV, dtype=acc)
            new_BGV = new_BGV.at[..., :-1].add(-_divided(known_BGV))
        outer_BGKV = _feature(write_BGK, acc)[..., None] * new_BGV[:, :, None]
        added_BGKV = _time.select(~begins_B, state.added_BGKV) + outer_BGKV
        return InfiniState(ring, memory_BGKV, added_BGKV), y_BHV.astype(q_BHK.dtype)

    return _time.scan_time(step, before, xs, pos_BT)


class _Places(NamedTuple):
    """Where the tokens of a call are. `old`: in the last segment of which the state has tokens, whose sums are `added`."""

    first_BT: jax.Array  # bool: in the document that the state continues
    old_BT: jax.Array  # bool
    document_BT: jax.Array  # number
    segment_BT: jax.Array  # number in the document
    last_BT: jax.Array  # bool: in the document at the end of the call
    open_B: jax.Array  # segment of that document's last token
    open_old_B: jax.Array  # bool
    continues_B: jax.Array  # bool: that document is the state's

    @classmethod
    def of(cls, count_B: jax.Array, pos_BT: jax.Array, segment: int) -> "_Places":
        document_BT, last_BT, continues_B = _time.segments(pos_BT), _time.last_segment(pos_BT), _time.continues(pos_BT)
        first_BT = (document_BT == 0) & _time.valid(pos_BT)
        segment_BT = attention.indices(count_B, pos_BT)[0] // segment
        state_B = (count_B - 1) // segment  # -1: the state is empty
        own_B = jnp.max(jnp.where(last_BT, segment_BT, -1), axis=1)
        open_B = jnp.maximum(own_B, jnp.where(continues_B, state_B, -1))
        old_BT = first_BT & (segment_BT == state_B[:, None])
        open_old_B = continues_B & (open_B == state_B)
        return cls(first_BT, old_BT, document_BT, segment_BT, last_BT, open_B, open_old_B, continues_B)

    def earlier(self) -> jax.Array:
        """[B, T, S] bool: token s is in an earlier segment of the document of token t. Padding comes after all tokens."""
        same_BTS = self.document_BT[:, :, None] == self.document_BT[:, None]
        return same_BTS & (self.segment_BT[:, None] < self.segment_BT[:, :, None])


def _from_state(f_BTGRK: jax.Array, state: InfiniState, places: _Places) -> jax.Array:
    """f [M, z] of the state, as it is before each token's segment."""
    sums = lambda x_BGKV: compat.einsum("btgrk,bgkv->btgrv", f_BTGRK, x_BGKV, dtype=x_BGKV.dtype)  # noqa: E731
    kept_BTGRV = _time.select(places.first_BT, sums(state.memory_BGKV))
    return kept_BTGRV + _time.select(places.first_BT & ~places.old_BT, sums(state.added_BGKV))


def _products(f_BTGRK: jax.Array, w_BTGK: jax.Array, places: _Places) -> jax.Array:
    """f_t . w_s [B, G, R, T, S] for tokens s in earlier segments, else 0."""
    products = compat.einsum("btgrk,bsgk->bgrts", f_BTGRK, w_BTGK, dtype=w_BTGK.dtype)
    return jnp.where(places.earlier()[:, None, None], products, 0)


def _corrected(v_BTGV: jax.Array, write_BTGK: jax.Array, w_BTGK: jax.Array, state: InfiniState, places: _Places) -> jax.Array:
    """v - (what the memory holds for the token's key), which itself consists of corrected values of earlier segments:
    (I + P) v' = v - known, with the weights P of tokens in earlier segments and `known` from the state."""
    f_BTG1K = _scaled_feature(write_BTGK, w_BTGK.dtype)[:, :, :, None]
    known_BTGV = _from_state(f_BTG1K, state, places)[:, :, :, 0]
    p_BGTS = _products(f_BTG1K, w_BTGK, places)[:, :, 0]
    z_BGT1 = jnp.swapaxes(known_BTGV[..., -1:], 1, 2) + jnp.sum(p_BGTS, axis=-1, keepdims=True)
    inverse_BGT1 = jnp.where(z_BGT1 > 0, 1 / jnp.where(z_BGT1 > 0, z_BGT1, 1), 0)
    right_BGTV = jnp.swapaxes(v_BTGV, 1, 2) - inverse_BGT1 * jnp.swapaxes(known_BTGV[..., :-1], 1, 2)
    return jnp.swapaxes(solve_triangular(inverse_BGT1 * p_BGTS, right_BGTV, lower=True, unit_diagonal=True), 1, 2)


def _next_state(state: InfiniState, ring: AttentionState, w_BTGK, v_BTGV, places: _Places) -> InfiniState:
    def sums(mask_BT):
        w = _time.select(mask_BT, w_BTGK)
        return compat.einsum("btgk,btgv->bgkv", w, v_BTGV, dtype=w.dtype)

    open_BT = places.segment_BT == places.open_B[:, None]
    memory_BGKV = _time.select(places.continues_B, state.memory_BGKV) + sums(places.last_BT & ~open_BT)
    memory_BGKV += _time.select(places.continues_B & ~places.open_old_B, state.added_BGKV)
    added_BGKV = _time.select(places.open_old_B, state.added_BGKV) + sums(places.last_BT & open_BT)
    return InfiniState(ring, memory_BGKV, added_BGKV)


def parallel(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGV: jax.Array, read_BTHK: jax.Array, write_BTGK: jax.Array, *, gate_H: jax.Array,
    segment: int, delta: bool = True, state: InfiniState | None = None, pos: jax.Array | None = None, scale: float | None = None,
) -> tuple[jax.Array, InfiniState]:  # fmt: skip
    """T x T products with the tokens of earlier segments stand for the memories; with `delta` a triangular system of T rows."""
    prepared = _prepare(q_BTHK, k_BTGK, v_BTGV, read_BTHK, write_BTGK, gate_H, state, pos, segment, scale)
    factor, before, xs, pos_BT = prepared
    if q_BTHK.shape[1] == 0:
        return attention._no_tokens(q_BTHK, v_BTGV), before
    q_BTHK, k_BTGK, v_BTGV, read_BTHK, write_BTGK = xs
    acc, places = before.memory_BGKV.dtype, _Places.of(before.ring.count_B, pos_BT, segment)
    span, keys = attention.gather(before.ring, k_BTGK, v_BTGV, pos_BT, None)
    low_BT = jnp.where(_time.valid(pos_BT), span.low_BT + places.segment_BT * segment, span.low_BT)
    near_BTHV, _ = attend(q_BTHK, keys, Span(low_BT, span.high_BT), Score(factor))

    w_BTGK, values_BTGV = _feature(write_BTGK, acc), v_BTGV.astype(acc)
    if delta:
        values_BTGV = _corrected(values_BTGV, write_BTGK, w_BTGK, before, places)
    values_BTGV = _with_one(values_BTGV, acc)
    f_BTGRK = _scaled_feature(read_BTHK, acc).reshape(*k_BTGK.shape[:3], -1, read_BTHK.shape[3])
    sums = compat.einsum("bgrts,bsgv->btgrv", _products(f_BTGRK, w_BTGK, places), values_BTGV, dtype=acc)
    far_BTGRV = _divided(_from_state(f_BTGRK, before, places) + sums)
    y_BTHV = _mixed(near_BTHV, far_BTGRV.reshape(near_BTHV.shape), gate_H)
    ring = attention.next_state(before.ring, k_BTGK, v_BTGV, pos_BT)
    state = _next_state(before, ring, w_BTGK, values_BTGV, places)
    return attention.finish(y_BTHV, y_BTHV, None, pos_BT, q_BTHK.dtype), state


def chunkwise(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGV: jax.Array, read_BTHK: jax.Array, write_BTGK: jax.Array, *, gate_H: jax.Array,
    segment: int, delta: bool = True, state: InfiniState | None = None, pos: jax.Array | None = None, scale: float | None = None,
    chunk: int | None = None,
) -> tuple[jax.Array, InfiniState]:  # fmt: skip
    """The parallel form for `chunk` tokens after another (default: `segment`), so time and memory are linear in T."""
    options = {"gate_H": gate_H, "segment": segment, "delta": delta, "scale": scale}
    prepared = _prepare(q_BTHK, k_BTGK, v_BTGV, read_BTHK, write_BTGK, gate_H, state, pos, segment, scale)
    _, before, xs, pos_BT = prepared
    return _time.scan_chunks(partial(parallel, **options), before, xs, pos_BT, chunk or segment)


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}
CUT = "serial"


def _inputs(key: jax.Array, batch: int, time: int, dtype: DTypeLike) -> tuple[jax.Array, ...]:
    keys = jax.random.split(key, 5)
    shapes = ((4, 6), (2, 6), (2, 5), (4, 6), (2, 6))
    return tuple(jax.random.normal(k, (batch, time, *shape), dtype) for k, shape in zip(keys, shapes, strict=True))


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`. The state is in the middle of the fourth segment."""
    key_x, key_prefix, key_gate = jax.random.split(key, 3)
    acc = jnp.promote_types(dtype, jnp.float32)
    weights, options = {"gate_H": jax.random.normal(key_gate, (4,), acc)}, {"segment": 4}
    state = recurrent(*_inputs(key_prefix, batch, 15, dtype), **weights, **options)[1]
    return Example(_inputs(key_x, batch, time, dtype), weights, options, state)


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """The log-decays of `stresses` become differences of scores and of read features: none, small, about 50, a mix of these."""
    base = example(key, batch, time, dtype)
    q_BTHK, k_BTGK, v_BTGV, read_BTHK, write_BTGK = base.xs

    def sharpened(log_BTH1):
        sharp_BTH1 = jnp.clip(log_BTH1, -50, 0)
        return base._replace(xs=(q_BTHK * sharp_BTH1, k_BTGK, v_BTGV, read_BTHK * sharp_BTH1, write_BTGK))

    return stresses(key, base, (*q_BTHK.shape[:3], 1), sharpened)
