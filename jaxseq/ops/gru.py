"""Gated recurrent unit (Cho et al. 2014, arXiv:1406.1078), in the variant that cuDNN and torch compute.

    r, z = sigmoid(u_t + W h_{t-1} + b)
    n = tanh(u_t + r (W h_{t-1} + b))          the reset gate is applied after the product and the bias
    h_t = (1 - z) n + z h_{t-1},   y_t = h_t

The op takes u = W_x x, which does not depend on the state; gates are in torch's order r, z, n. Each head has its own recurrent
matrix; one head gives the usual GRU. Forms as for the LSTM (`jaxseq.ops.lstm`), with K x K matrices.

State: h [B, H, K] in the accumulation dtype, in which everything is computed, products at full precision.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq.ops import _gated, _newton, _time
from jaxseq.ops._example import Example

GATES = ("r", "z", "n")


class GRUState(NamedTuple):
    """State h [B, H, K], in the accumulation dtype."""

    h_BHK: jax.Array


def init_state(batch: int, heads: int, size: int, dtype: DTypeLike = jnp.float32) -> GRUState:
    """The empty state, in the accumulation dtype for inputs of `dtype`."""
    return GRUState(jnp.zeros((batch, heads, size), _time.accumulation_dtype(jnp.zeros((), dtype))))


def _gates(s, u, weights):
    """Gate activations, shared by the step and its derivative; s [..., H, K, 1] holds h, u is [..., H, 3, K]."""
    w_HKPJ, b_HPJ = weights
    a = b_HPJ + jnp.einsum("...hk,hkpj->...hpj", s[..., 0], w_HKPJ, precision="highest")
    r, z = (_gated.sigmoids(u[..., n, :] + a[..., n, :]) for n in (0, 1))  # each as (gate, 1 - gate)
    return s[..., 0], r, z, jnp.tanh(u[..., 2, :] + r[0] * a[..., 2, :]), a[..., 2, :]


def _step(s, xs, weights):
    h, _, (z, rest), n, _ = _gates(s, xs[0], weights)
    return (rest * n + z * h)[..., None]


def _slopes(s, xs, weights):
    """d h_t / d h_{t-1} at fixed gates, and d h_t / d (W h_{t-1}) for the three gates [..., H, 3, K]."""
    h, (r, r_rest), (z, z_rest), n, a = _gates(s, xs[0], weights)
    of_n = z_rest * (1 - n * n)
    return z, jnp.stack([of_n * a * r * r_rest, (h - n) * z * z_rest, of_n * r], axis=-2)


def _jacobian(s, xs, weights):
    """Jacobian of the step [..., H, K, 1, K, 1]."""
    z, of_a = _slopes(s, xs, weights)
    h_h = jnp.einsum("...hpj,hkpj->...hjk", of_a, weights[0], precision="highest")
    return (h_h + z[..., None] * jnp.eye(z.shape[-1], dtype=z.dtype))[..., None, :, None]


def _output(s, after, xs, weights):
    return after[..., 0]


def _bound(first, xs):
    """h_t lies between h_{t-1} and n, and |n| < 1."""
    return jnp.maximum(jnp.abs(first[:, None]), 1)


RECURRENCE = _newton.Recurrence(_step, _output, _jacobian, _bound)
prepare = _gated.preparation(GATES, init_state)


def _unpack(s) -> GRUState:
    return GRUState(s[..., 0])


OP = _newton.Op("gru", RECURRENCE, prepare, _unpack)


def recurrent(
    u_BTHPK: jax.Array, *, w_HKPJ: jax.Array, b_HPK: jax.Array, state: GRUState | None = None, pos: jax.Array | None = None
) -> tuple[jax.Array, GRUState]:
    """One token after another."""
    return _newton.recurrent(OP, u_BTHPK, w_HKPJ=w_HKPJ, b_HPK=b_HPK, state=state, pos=pos)


def parallel(
    u_BTHPK: jax.Array, *, w_HKPJ: jax.Array, b_HPK: jax.Array, state: GRUState | None = None, pos: jax.Array | None = None
) -> tuple[jax.Array, GRUState]:
    """Newton's method on the whole sequence."""
    return _newton.parallel(OP, u_BTHPK, w_HKPJ=w_HKPJ, b_HPK=b_HPK, state=state, pos=pos)


def chunkwise(
    u_BTHPK: jax.Array, *, w_HKPJ: jax.Array, b_HPK: jax.Array, state: GRUState | None = None, pos: jax.Array | None = None,
    chunk: int = 64,
) -> tuple[jax.Array, GRUState]:  # fmt: skip
    """Newton's method inside each chunk; the state is carried between chunks."""
    return _newton.chunkwise(OP, u_BTHPK, w_HKPJ=w_HKPJ, b_HPK=b_HPK, state=state, pos=pos, chunk=chunk)


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}
CUT = "serial"


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`."""
    return _gated.example(recurrent, len(GATES), key, batch, time, dtype)


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """The hard inputs by name, see `jaxseq.ops.stresses`."""
    return _gated.stress(example(key, batch, time, dtype), key)
