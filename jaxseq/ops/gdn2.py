"""The update rule of Gated DeltaNet-2: a delta rule with separate erase and write gates per channel.

    S_t = (I - k_t^T (b_t * k_t)) diag(e^{log_w_t}) S_{t-1} + k_t^T (w_t * v_t)         S [K, V] per head
    y_t = q_t S_t

With b = w = beta this is `kda`. log_w <= 0 per key channel; b [.., K] is the erase gate, w [.., V] the write gate. The mixer
normalises keys to unit length and scales queries. q and k may have fewer heads G than v: each is shared by H / G heads.
State: S_BHKV in the accumulation dtype, in which everything is computed.

Source: fla.ops.gdn2 of flash-linear-attention 0.6 (its naive operator).
"""

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq.ops import _delta
from jaxseq.ops._delta import DeltaState, Summary, apply, combine, init_state
from jaxseq.ops._example import Example, repeated, stresses

__all__ = ["FORMS", "DeltaState", "Summary", "apply", "combine", "example", "init_state", "stress", "summary"]


def _prepare(q_BTGK, k_BTGK, v_BTHV, log_w_BTHK, b_BTHK, w_BTHV):
    q_BTHK, k_BTHK, v_BTHV = _delta.spread(q_BTGK, k_BTGK, v_BTHV)
    chex.assert_equal_shape([q_BTHK, log_w_BTHK, b_BTHK])
    chex.assert_equal_shape([v_BTHV, w_BTHV])
    log_w_BTHK, b_BTHK, w_BTHV = (x.astype(v_BTHV.dtype) for x in (log_w_BTHK, b_BTHK, w_BTHV))
    return q_BTHK, k_BTHK, w_BTHV * v_BTHV, b_BTHK * k_BTHK, log_w_BTHK


FORMS, summary = _delta.forms(_prepare)
CUT = "affine"
recurrent, parallel, chunkwise = FORMS.values()


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`."""
    def inputs(key, time):
        keys = jax.random.split(key, 6)
        q_BTGK, k_BTGK = (jax.random.normal(k, (batch, time, 1, 4), dtype) for k in keys[:2])
        v_BTHV, w_BTHV = (jax.random.normal(k, (batch, time, 2, 3), dtype) for k in keys[2:4])
        log_w_BTHK, b_BTHK = (jax.random.normal(k, (batch, time, 2, 4), dtype) for k in keys[4:])
        k_BTGK /= jnp.linalg.norm(k_BTGK, axis=-1, keepdims=True)
        return q_BTGK, k_BTGK, v_BTHV, -jax.nn.softplus(log_w_BTHK - 3), jax.nn.sigmoid(b_BTHK), jax.nn.sigmoid(w_BTHV)

    key_x, key_prefix = jax.random.split(key)
    return Example(inputs(key_x, time), {}, {}, recurrent(*inputs(key_prefix, 32))[1])


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """All tokens have one key. b = 0.9; "repeated": log_w = 0 and b = 1; "large": log_w = -0.05 and b = 1.9."""
    base = example(key, batch, time, dtype)
    q, k, v, log_w, b, w = base.xs
    (one,) = repeated(k)

    def of(k, log_w, b):
        return base._replace(xs=(q, k, v, log_w, b, w))

    replaced, overshot = of(one, 0 * log_w, jnp.ones_like(b)), of(one, jnp.full_like(log_w, -0.05), jnp.full_like(b, 1.9))
    return stresses(key, base, log_w.shape, lambda log_w: of(one, log_w, 0.9 * jnp.ones_like(b)), replaced, overshot)
