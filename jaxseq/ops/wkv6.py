"""WKV of RWKV-5 and RWKV-6: linear attention with a decay per key channel and a bonus for the current token.

    y_t = r_t (S_{t-1} + diag(u) k_t^T v_t)
    S_t = diag(e^{log_w_t}) S_{t-1} + k_t^T v_t         S [K, V] per head

Peng et al. 2024 (arXiv:2404.05892, eq. 16 to 19). log_w <= 0 is constant over time in RWKV-5 and depends on the data in RWKV-6.
State: S_BHKV in the accumulation dtype, in which everything is computed.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq.ops import _decay, _time
from jaxseq.ops._example import Example, stresses


class WKV6State(NamedTuple):
    """Matrix state S [B, H, K, V], in the accumulation dtype."""

    S_BHKV: jax.Array


class Summary(NamedTuple):
    """Effect of a segment on the incoming state: S -> diag(A) S + S'."""

    A_BHK: jax.Array  # total decay; 0 if a document starts in the segment
    S_BHKV: jax.Array


def init_state(batch: int, heads: int, key_size: int, value_size: int, dtype: DTypeLike = jnp.float32) -> WKV6State:
    """The empty state, in the accumulation dtype for inputs of `dtype`."""
    return WKV6State(jnp.zeros((batch, heads, key_size, value_size), _time.accumulation_dtype(jnp.zeros((), dtype))))


def _prepare(r_BTHK, k_BTHK, v_BTHV, log_w_BTHK, u_HK, state, pos):
    chex.assert_shape(u_HK, r_BTHK.shape[2:])
    return _decay.prepare(init_state, v_BTHV, [r_BTHK, log_w_BTHK, k_BTHK], state, pos)


def recurrent(
    r_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, log_w_BTHK: jax.Array, *, u_HK: jax.Array,
    state: WKV6State | None = None, pos: jax.Array | None = None,
) -> tuple[jax.Array, WKV6State]:  # fmt: skip
    """One token after another."""
    acc, pos_BT, state = _prepare(r_BTHK, k_BTHK, v_BTHV, log_w_BTHK, u_HK, state, pos)
    u_HK = u_HK.astype(acc)

    def step(state, r_BHK, k_BHK, v_BHV, log_w_BHK):
        dtype, r_BHK, k_BHK, v_BHV, log_w_BHK = r_BHK.dtype, *(z.astype(acc) for z in (r_BHK, k_BHK, v_BHV, log_w_BHK))
        kv_BHKV = k_BHK[..., None] * v_BHV[..., None, :]
        y_BHV = jnp.einsum("bhk,bhkv->bhv", r_BHK, state.S_BHKV + u_HK[..., None] * kv_BHKV)
        return WKV6State(jnp.exp(log_w_BHK)[..., None] * state.S_BHKV + kv_BHKV), y_BHV.astype(dtype)

    return _time.scan_time(step, state, (r_BTHK, k_BTHK, v_BTHV, log_w_BTHK), pos_BT)


def _inside(r_BTHK, k_BTHK, v_BTHV, u_HK, decays: _decay.Decays, S_BHKV, pos_BT):
    """Outputs [B, T, H, V] of one chunk from the incoming state and the chunk's own tokens."""
    seg_BT = _time.segments(pos_BT)
    scores_BHTS = _decay.products_before(r_BTHK, k_BTHK, decays, _decay.before(seg_BT))
    y_BTHV = jnp.einsum("bhts,bshv->bthv", scores_BHTS, v_BTHV)
    y_BTHV += jnp.sum(r_BTHK * u_HK * k_BTHK, axis=-1, keepdims=True) * v_BTHV
    in_BTHK = _time.select(seg_BT == 0, decays.before_BTHK)
    return y_BTHV + jnp.einsum("bthk,bhkv->bthv", r_BTHK * in_BTHK, S_BHKV)


def _summary(k_BTHK, v_BTHV, decays: _decay.Decays, pos_BT) -> Summary:
    out_BTHK = _time.select(_time.last_segment(pos_BT), decays.after_BTHK)
    A_BHK = _time.select(_time.continues(pos_BT), decays.upto_BTHK[:, -1])
    return Summary(A_BHK, jnp.einsum("bthk,bthv->bhkv", k_BTHK * out_BTHK, v_BTHV))


def summary(
    r_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, log_w_BTHK: jax.Array, *, u_HK: jax.Array,
    pos: jax.Array | None = None,
) -> Summary:  # fmt: skip
    """The `Summary` of the segment. T >= 1."""
    acc, pos_BT, _ = _prepare(r_BTHK, k_BTHK, v_BTHV, log_w_BTHK, u_HK, None, pos)
    k_BTHK, v_BTHV, log_w_BTHK = (x.astype(acc) for x in _time.clean(pos_BT, k_BTHK, v_BTHV, log_w_BTHK))
    return _summary(k_BTHK, v_BTHV, _decay.decays(log_w_BTHK, pos_BT, acc), pos_BT)


def combine(first: Summary, second: Summary) -> Summary:
    """The summary of two segments, one after the other; associative."""
    return Summary(second.A_BHK * first.A_BHK, second.A_BHK[..., None] * first.S_BHKV + second.S_BHKV)


def apply(summary: Summary, state: WKV6State) -> WKV6State:
    """The state after a segment with this summary, for the state before it."""
    return WKV6State(summary.A_BHK[..., None] * state.S_BHKV + summary.S_BHKV)


def parallel(
    r_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, log_w_BTHK: jax.Array, *, u_HK: jax.Array,
    state: WKV6State | None = None, pos: jax.Array | None = None,
) -> tuple[jax.Array, WKV6State]:  # fmt: skip
    """All chunks of 64 tokens at once; their states are combined by an associative scan."""
    acc, pos_BT, before = _prepare(r_BTHK, k_BTHK, v_BTHV, log_w_BTHK, u_HK, state, pos)
    time = r_BTHK.shape[1]
    if time == 0:
        return v_BTHV.astype(r_BTHK.dtype), before
    xs = (x.astype(acc) for x in _time.clean(pos_BT, r_BTHK, k_BTHK, v_BTHV, log_w_BTHK))
    pos_ZBC, r, k, v, log_w = _time.split_chunks(min(64, time), pos_BT, *xs)
    decays = jax.vmap(lambda log_w, pos: _decay.decays(log_w, pos, acc))(log_w, pos_ZBC)
    front, after = _decay.chunk_parallel(jax.vmap(_summary)(k, v, decays, pos_ZBC), combine, before, apply)
    y = jax.vmap(_inside, in_axes=(0, 0, 0, None, 0, 0, 0))(r, k, v, u_HK.astype(acc), decays, front.S_BHKV, pos_ZBC)
    return _time.select(_time.valid(pos_BT), _time.join_chunks(y, time)).astype(r_BTHK.dtype), after


def chunkwise(
    r_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, log_w_BTHK: jax.Array, *, u_HK: jax.Array,
    state: WKV6State | None = None, pos: jax.Array | None = None, chunk: int = 64,
) -> tuple[jax.Array, WKV6State]:  # fmt: skip
    """Matrix products inside each chunk; the state is carried between chunks. Memory is linear in T."""
    _, pos_BT, before = _prepare(r_BTHK, k_BTHK, v_BTHV, log_w_BTHK, u_HK, state, pos)
    if r_BTHK.shape[1] == 0:
        return v_BTHV.astype(r_BTHK.dtype), before

    def form(*xs, state, pos):
        return parallel(*xs, u_HK=u_HK, state=state, pos=pos)

    return _time.scan_chunks(form, before, (r_BTHK, k_BTHK, v_BTHV, log_w_BTHK), pos_BT, chunk)


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}
CUT = "affine"


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`."""
    def inputs(key, time):
        keys = jax.random.split(key, 4)
        r_BTHK, k_BTHK = (jax.random.normal(k, (batch, time, 2, 4), dtype) for k in keys[:2])
        v_BTHV = jax.random.normal(keys[2], (batch, time, 2, 3), dtype)
        log_w_BTHK = -jnp.exp(jax.random.normal(keys[3], (batch, time, 2, 4), dtype) - 2)
        return r_BTHK, k_BTHK, v_BTHV, log_w_BTHK

    key_x, key_prefix, key_u = jax.random.split(key, 3)
    weights: dict[str, Any] = {"u_HK": jax.random.normal(key_u, (2, 4), dtype)}
    state = recurrent(*inputs(key_prefix, 32), **weights)[1]
    return Example(inputs(key_x, time), weights, {}, state)


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """The hard inputs by name, see `jaxseq.ops.stresses`."""
    base = example(key, batch, time, dtype)
    *rkv, log_w_BTHK = base.xs
    return stresses(key, base, log_w_BTHK.shape, lambda log_w_BTHK: base._replace(xs=(*rkv, log_w_BTHK)))
