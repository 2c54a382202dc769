"""Kimi Delta Attention: the gated delta rule with one decay per key channel (Kimi Team 2025, arXiv:2510.26692, eq. 1).

    S_t = (I - beta_t k_t^T k_t) diag(e^{log_w_t}) S_{t-1} + beta_t k_t^T v_t         S [K, V] per head
    y_t = q_t S_t

log_w <= 0; beta in (0, 1), or in (0, 2) to allow negative eigenvalues. The mixer normalises keys to unit length and scales
queries. q and k may have fewer heads G than v: each is shared by H / G heads. State: S_BHKV in the accumulation dtype, in which
everything is computed.
"""

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq.ops import _delta
from jaxseq.ops._delta import DeltaState, Summary, apply, combine, init_state
from jaxseq.ops._example import Example

__all__ = ["FORMS", "DeltaState", "Summary", "apply", "combine", "example", "init_state", "stress", "summary"]


def _prepare(q_BTGK, k_BTGK, v_BTHV, log_w_BTHK, beta_BTH):
    q_BTHK, k_BTHK, v_BTHV = _delta.spread(q_BTGK, k_BTGK, v_BTHV)
    chex.assert_equal_shape([q_BTHK, log_w_BTHK])
    chex.assert_shape(beta_BTH, v_BTHV.shape[:3])
    beta_BTH1 = beta_BTH.astype(v_BTHV.dtype)[..., None]
    return q_BTHK, k_BTHK, beta_BTH1 * v_BTHV, beta_BTH1 * k_BTHK, log_w_BTHK.astype(v_BTHV.dtype)


FORMS, summary = _delta.forms(_prepare)
CUT = "affine"
recurrent, parallel, chunkwise = FORMS.values()


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`."""
    return _delta.example(recurrent, (4,), key, batch, time, dtype)


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """The hard inputs by name, see `jaxseq.ops.stresses`."""
    return _delta.stress(example(key, batch, time, dtype), key)
