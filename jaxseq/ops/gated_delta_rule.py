"""The gated delta rule: DeltaNet with one decay per head (Yang et al. 2024, arXiv:2412.06464, eq. 10).

    S_t = a_t (I - beta_t k_t^T k_t) S_{t-1} + beta_t k_t^T v_t         S [K, V] per head
    y_t = q_t S_t

The paper writes S transposed. log_a = log a_t <= 0; with log_a = 0 this is DeltaNet (arXiv:2406.06484). beta in (0, 1), or in
(0, 2) to allow negative eigenvalues (Grazzi et al. 2024, arXiv:2411.12537). The mixer normalises keys to unit length and scales
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


def _prepare(q_BTGK, k_BTGK, v_BTHV, log_a_BTH, beta_BTH):
    q_BTHK, k_BTHK, v_BTHV = _delta.spread(q_BTGK, k_BTGK, v_BTHV)
    chex.assert_shape([log_a_BTH, beta_BTH], v_BTHV.shape[:3])
    beta_BTH1 = beta_BTH.astype(v_BTHV.dtype)[..., None]
    return q_BTHK, k_BTHK, beta_BTH1 * v_BTHV, beta_BTH1 * k_BTHK, log_a_BTH.astype(v_BTHV.dtype)


FORMS, summary = _delta.forms(_prepare)
CUT = "affine"
recurrent, parallel, chunkwise = FORMS.values()


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`."""
    return _delta.example(recurrent, (), key, batch, time, dtype)


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """The hard inputs by name, see `jaxseq.ops.stresses`."""
    return _delta.stress(example(key, batch, time, dtype), key)
