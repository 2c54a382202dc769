"""The recurrence of minLSTM and minGRU, whose gates do not depend on the state (Feng et al. 2024, arXiv:2410.01201).

    h_t = sigmoid(gate_t) h_{t-1} + sigmoid(-gate_t) v_t

minLSTM normalises its forget and input gates to f / (f + i) and i / (f + i) (§3.2.3): gate = log f - log i. minGRU (§3.1.3) has
gate = -z. The state is therefore a weighted mean of the values so far. Departure: the paper makes v positive to compute in
log space; here v may have any sign, because nothing is computed in log space.

State: h_BD in the accumulation dtype, in which everything is computed. A document begins with h = 0.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq.ops import _gated, _linear
from jaxseq.ops._example import Example, gates, stresses
from jaxseq.ops._linear import LinearState, Summary, apply, combine, init_state

__all__ = ["FORMS", "LinearState", "Summary", "apply", "combine", "example", "init_state", "stress", "summary"]


def _affine(v_BTD, gate_BTD):
    keep_BTD, add_BTD = _gated.sigmoids(gate_BTD)
    return keep_BTD, add_BTD * v_BTD


def recurrent(
    v_BTD: jax.Array, gate_BTD: jax.Array, *, state: LinearState | None = None, pos: jax.Array | None = None
) -> tuple[jax.Array, LinearState]:
    """One token after another."""
    return _linear.recurrent(_affine, v_BTD, gate_BTD, state, pos)


def parallel(
    v_BTD: jax.Array, gate_BTD: jax.Array, *, state: LinearState | None = None, pos: jax.Array | None = None
) -> tuple[jax.Array, LinearState]:
    """An associative scan over time."""
    return _linear.parallel(_affine, v_BTD, gate_BTD, state, pos)


def chunkwise(
    v_BTD: jax.Array, gate_BTD: jax.Array, *, state: LinearState | None = None, pos: jax.Array | None = None, chunk: int = 256
) -> tuple[jax.Array, LinearState]:
    """An associative scan inside each chunk; the state is carried between chunks."""
    return _linear.chunkwise(_affine, v_BTD, gate_BTD, state, pos, chunk)


def summary(v_BTD: jax.Array, gate_BTD: jax.Array, *, pos: jax.Array | None = None) -> Summary:
    """Product of the decays, and the state after the segment starting from zero. T >= 1."""
    return _linear.summary(_affine, v_BTD, gate_BTD, pos)


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}
CUT = "affine"


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`."""
    def inputs(key, time):
        keys = jax.random.split(key)
        v_BTD = jax.random.normal(keys[0], (batch, time, 5), dtype)
        return v_BTD, jax.random.normal(keys[1], (batch, time, 5), dtype) + 2  # a memory of about ten tokens

    key_x, key_prefix = jax.random.split(key)
    v_BTD, gate_BTD = inputs(key_prefix, 32)
    return Example(inputs(key_x, time), {}, {}, recurrent(v_BTD + 1, gate_BTD)[1])


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """The hard inputs by name, see `jaxseq.ops.stresses`."""
    base = example(key, batch, time, dtype)
    v_BTD, gate_BTD = base.xs
    return stresses(key, base, gate_BTD.shape, lambda log_a_BTD: base._replace(xs=(v_BTD, gates(log_a_BTD))))
