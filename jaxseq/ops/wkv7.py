"""WKV of RWKV-7: a generalised delta rule, diagonal decay plus a rank-one correction (Peng et al. 2025, arXiv:2503.14456, §3).

    S_t = (diag(e^{log_w_t}) + b_t^T a_t) S_{t-1} + k_t^T v_t          S [K, V] per head
    y_t = r_t S_t

The paper writes S transposed. In RWKV-7 a = -kappa and b = kappa * (its in-context learning rate), kappa a unit vector; the
delta rule is log_w = 0, a = -k, b = beta k. log_w <= 0. State: S_BHKV in the accumulation dtype, in which everything is computed.
Chunks are computed in the stages of `_delta` with z = a S; the write k^T v is added.
"""

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq.ops import _decay, _delta, _time
from jaxseq.ops._delta import DeltaState, Summary, apply, combine, init_state
from jaxseq.ops._example import Example, repeated, stresses

__all__ = ["FORMS", "DeltaState", "Summary", "apply", "combine", "example", "init_state", "stress", "summary"]


def _prepare(r_BTHK, log_w_BTHK, k_BTHK, v_BTHV, a_BTHK, b_BTHK):
    chex.assert_rank([r_BTHK, v_BTHV], 4)
    chex.assert_equal_shape([r_BTHK, log_w_BTHK, k_BTHK, a_BTHK, b_BTHK])
    chex.assert_equal_shape_prefix([r_BTHK, v_BTHV], 3)
    acc = _time.accumulation_dtype(r_BTHK, v_BTHV, log_w_BTHK)
    return tuple(x.astype(acc) for x in (r_BTHK, k_BTHK, v_BTHV, log_w_BTHK, a_BTHK, b_BTHK))


def _step(state, r_BHK, k_BHK, v_BHV, log_w_BHK, a_BHK, b_BHK):
    read_BHV = jnp.einsum("bhk,bhkv->bhv", a_BHK, state.S_BHKV)
    S_BHKV = jnp.exp(log_w_BHK)[..., None] * state.S_BHKV
    S_BHKV += b_BHK[..., None] * read_BHV[..., None, :] + k_BHK[..., None] * v_BHV[..., None, :]
    return DeltaState(S_BHKV), jnp.einsum("bhk,bhkv->bhv", r_BHK, S_BHKV)


def _products(function, x, ys, decays, mask_BTS):
    """`function`, one of `_decay`'s products, of x with each y: [len(y), B, H, T, S]."""
    return jax.vmap(lambda y: function(x, y, decays, mask_BTS))(jnp.stack(ys))


def _solved(r, k, v, log_w, a, b, pos_BT) -> _delta.Chunk:
    """z_t = a_t e^{c_{t-1}} S + sum_{s<t} a_t e^{c_{t-1} - c_s} (b_s z_s + k_s v_s), a triangular system."""
    seg_BT = _time.segments(pos_BT)
    decays, earlier_BTS = _decay.decays(log_w, pos_BT, v.dtype), _decay.before(seg_BT)
    A_BHTS, with_k_BHTS = _products(_decay.products_before, a, (b, k), decays, earlier_BTS)
    given_BTHV = jnp.einsum("bhts,bshv->bthv", with_k_BHTS, v)
    own, from_state = _delta.solve(A_BHTS, given_BTHV, a * _time.select(seg_BT == 0, decays.before_BTHK))

    mask_BTS = earlier_BTS | jnp.eye(seg_BT.shape[1], dtype=bool)
    scores_BHTS, with_k_BHTS = _products(_decay.products, r, (b, k), decays, mask_BTS)
    out_BTHK = _time.select(_time.last_segment(pos_BT), decays.after_BTHK)
    decay_BHK = _time.select(_time.continues(pos_BT), decays.upto_BTHK[:, -1])
    left_BHKV = jnp.einsum("bthk,bthv->bhkv", k * out_BTHK, v)
    return _delta.Chunk(
        _delta.Moves(own, from_state, b * out_BTHK, decay_BHK, left_BHKV), scores_BHTS,
        r * _time.select(seg_BT == 0, decays.upto_BTHK), jnp.einsum("bhts,bshv->bthv", with_k_BHTS, v),
    )  # fmt: skip


FORMS, summary = _delta.forms(_prepare, _step, _solved, size=32)
CUT = "affine"
recurrent, parallel, chunkwise = FORMS.values()


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`."""
    def inputs(key, time):
        keys = jax.random.split(key, 6)
        r, k, kappa, rate, log_w = (jax.random.normal(k, (batch, time, 2, 4), dtype) for k in keys[:5])
        v_BTHV = jax.random.normal(keys[5], (batch, time, 2, 3), dtype)
        kappa /= jnp.linalg.norm(kappa, axis=-1, keepdims=True)
        return r, -0.6 * jax.nn.sigmoid(log_w - 2), 0.5 * k, v_BTHV, -kappa, 0.5 * kappa * jax.nn.sigmoid(rate)

    key_x, key_prefix = jax.random.split(key)
    state = recurrent(*inputs(key_prefix, 32))[1]
    return Example(inputs(key_x, time), {}, {}, state)


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """All tokens have one key. beta = 0.9; "repeated": log_w = 0 and beta = 1; "large": log_w = -0.05 and beta = 1.9."""
    base = example(key, batch, time, dtype)
    r, log_w, k, v, a, _ = base.xs
    (kappa,) = repeated(a)

    def decayed(log_w):
        return base._replace(xs=(r, log_w, k, v, kappa, -0.9 * kappa))

    replaced = base._replace(xs=(r, 0 * log_w, -kappa, v, kappa, -kappa))
    overshot = base._replace(xs=(r, jnp.full_like(log_w, -0.05), -kappa, v, kappa, -1.9 * kappa))
    return stresses(key, base, log_w.shape, decayed, replaced, overshot)
