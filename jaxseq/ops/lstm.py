"""Long short-term memory (Hochreiter & Schmidhuber 1997; with forget gate, Gers et al. 2000), as cuDNN and torch compute it.

    i, f, g, o = u_t + W h_{t-1} + b           i, f, o through sigmoid, g through tanh
    c_t = f c_{t-1} + i g
    h_t = o tanh(c_t),   y_t = h_t

The op takes u = W_x x, which does not depend on the state; gates are in torch's order i, f, g, o. Each head has its own
recurrent matrix (block-diagonal as in Beck et al. 2024, arXiv:2405.04517, §2.2); one head gives the usual LSTM.

Gates depend on h, so the recurrence is nonlinear. `parallel` solves for all states by Newton's method, which multiplies 2K x 2K
matrices; `chunkwise` solves one chunk at a time. See `jaxseq.ops._newton` for the tolerance, the limit on iterations and rows
that do not converge.

State: h and c [B, H, K] in the accumulation dtype, in which everything is computed, products at full precision.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq.ops import _gated, _newton, _time
from jaxseq.ops._example import Example

GATES = ("i", "f", "g", "o")


class LSTMState(NamedTuple):
    """State h and c [B, H, K], in the accumulation dtype."""

    h_BHK: jax.Array
    c_BHK: jax.Array


def init_state(batch: int, heads: int, size: int, dtype: DTypeLike = jnp.float32) -> LSTMState:
    """The empty state, in the accumulation dtype for inputs of `dtype`."""
    zeros_BHK = jnp.zeros((batch, heads, size), _time.accumulation_dtype(jnp.zeros((), dtype)))
    return LSTMState(zeros_BHK, zeros_BHK)


def _gates(s, u, weights):
    """Gate activations, shared by the step and its derivative; s [..., H, K, 2] holds h and c, u [..., H, 4, K]."""
    w_HKPJ, b_HPJ = weights
    a = u + b_HPJ + jnp.einsum("...hk,hkpj->...hpj", s[..., 0], w_HKPJ, precision="highest")
    i, f, o = (_gated.sigmoids(a[..., n, :]) for n in (0, 1, 3))  # each as (gate, 1 - gate)
    g, c = jnp.tanh(a[..., 2, :]), s[..., 1]
    return i, f, g, o, c, f[0] * c + i[0] * g


def _step(s, xs, weights):
    *_, (o, _), _, new = _gates(s, xs[0], weights)
    return jnp.stack([o * jnp.tanh(new), new], axis=-1)


def _slopes(s, xs, weights):
    """d c_t / d c_{t-1}; d c_t / d a for the four gates [..., H, 4, K]; d h_t / d c_t; d h_t / d a_o."""
    (i, i_rest), (f, f_rest), g, (o, o_rest), c, new = _gates(s, xs[0], weights)
    of_c = jnp.stack([g * i * i_rest, c * f * f_rest, i * (1 - g * g), jnp.zeros_like(o)], axis=-2)
    t = jnp.tanh(new)
    return f, of_c, o * (1 - t * t), t * o * o_rest


def _jacobian(s, xs, weights):
    """Jacobian of the step [..., H, K, 2, K, 2]."""
    f, of_c, h_c, h_o = _slopes(s, xs, weights)
    eye = jnp.eye(f.shape[-1], dtype=f.dtype)
    c_h = jnp.einsum("...hpj,hkpj->...hjk", of_c, weights[0], precision="highest")
    h_h = h_c[..., None] * c_h + h_o[..., None] * jnp.swapaxes(weights[0][:, :, 3], 1, 2)
    c_c = f[..., None] * eye
    rows = jnp.stack([h_h, h_c[..., None] * c_c], axis=-1), jnp.stack([c_h, c_c], axis=-1)
    return jnp.stack(rows, axis=-3)


def _output(s, after, xs, weights):
    return after[..., 0]


def _bound(first, xs):
    """|h_t| < 1 and |c_t| < |c_0| + t; padding keeps h_0, which may be larger."""
    first = jnp.abs(first[:, None])
    t = jnp.arange(1, xs[0].shape[1] + 1, dtype=first.dtype).reshape(-1, 1, 1)
    h, c = jnp.broadcast_arrays(jnp.maximum(first[..., 0], 1), first[..., 1] + t)
    return jnp.stack([h, c], axis=-1)


RECURRENCE = _newton.Recurrence(_step, _output, _jacobian, _bound)
prepare = _gated.preparation(GATES, init_state)


def _unpack(s) -> LSTMState:
    return LSTMState(s[..., 0], s[..., 1])


OP = _newton.Op("lstm", RECURRENCE, prepare, _unpack)


def recurrent(
    u_BTHPK: jax.Array, *, w_HKPJ: jax.Array, b_HPK: jax.Array, state: LSTMState | None = None, pos: jax.Array | None = None
) -> tuple[jax.Array, LSTMState]:
    """One token after another."""
    return _newton.recurrent(OP, u_BTHPK, w_HKPJ=w_HKPJ, b_HPK=b_HPK, state=state, pos=pos)


def parallel(
    u_BTHPK: jax.Array, *, w_HKPJ: jax.Array, b_HPK: jax.Array, state: LSTMState | None = None, pos: jax.Array | None = None
) -> tuple[jax.Array, LSTMState]:
    """Newton's method on the whole sequence."""
    return _newton.parallel(OP, u_BTHPK, w_HKPJ=w_HKPJ, b_HPK=b_HPK, state=state, pos=pos)


def chunkwise(
    u_BTHPK: jax.Array, *, w_HKPJ: jax.Array, b_HPK: jax.Array, state: LSTMState | None = None, pos: jax.Array | None = None,
    chunk: int = 64,
) -> tuple[jax.Array, LSTMState]:  # fmt: skip
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
