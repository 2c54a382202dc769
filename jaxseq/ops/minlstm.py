"""The recurrence of minLSTM and minGRU, whose gates do not look at the state (Feng et al. 2024, arXiv:2410.01201).

    h_t = sigmoid(gate_t) h_{t-1} + sigmoid(-gate_t) v_t

With forget and input gates f and i, minLSTM normalises them, f / (f + i) and i / (f + i) (§3.2.3), which is the sigmoid of
log f - log i and of its opposite; minGRU (§3.1.3) has gate = -z. So the state stays a weighted mean of what it has seen. The
values v, which the paper makes positive to take logarithms of, may have any sign: nothing is computed in logarithms here.

State: h_BD in the accumulation dtype, in which everything is computed. A document begins with h = 0.
"""

import chex
import jax
import jax.numpy as jnp

from jaxseq.ops import _linear, _time
from jaxseq.ops._example import Example
from jaxseq.ops._linear import LinearState, Summary, apply, combine, init_state

__all__ = ["FORMS", "LinearState", "Summary", "apply", "chunkwise", "combine", "example", "init_state", "parallel", "recurrent"]


def _prepare(v_BTD, gate_BTD, state, pos):
    """a_t, b_t, positions and state."""
    chex.assert_rank(v_BTD, 3)
    chex.assert_equal_shape([v_BTD, gate_BTD])
    pos_BT = _time.positions(pos, v_BTD)
    chex.assert_shape(pos_BT, v_BTD.shape[:2])
    acc = _time.accumulation_dtype(v_BTD, gate_BTD)
    state = init_state(v_BTD.shape[0], v_BTD.shape[2], acc) if state is None else state
    chex.assert_shape(state.h_BD, (v_BTD.shape[0], v_BTD.shape[2]))
    v_BTD, gate_BTD = (x.astype(acc) for x in _time.clean(pos_BT, v_BTD, gate_BTD))
    return jax.nn.sigmoid(gate_BTD), jax.nn.sigmoid(-gate_BTD) * v_BTD, pos_BT, state


def _run(scan, v_BTD, gate_BTD, state, pos):
    a_BTD, b_BTD, pos_BT, state = _prepare(v_BTD, gate_BTD, state, pos)
    if v_BTD.shape[1] == 0:
        return v_BTD, state
    h_BTD = scan(a_BTD, b_BTD, state.h_BD, pos_BT)
    return _time.select(_time.valid(pos_BT), h_BTD).astype(v_BTD.dtype), LinearState(h_BTD[:, -1])


def recurrent(v_BTD, gate_BTD, *, state=None, pos=None):
    """One token after another."""
    return _run(_linear.steps, v_BTD, gate_BTD, state, pos)


def parallel(v_BTD, gate_BTD, *, state=None, pos=None):
    """`jax.lax.associative_scan` over time: log T steps."""
    return _run(_linear.associative, v_BTD, gate_BTD, state, pos)


def chunkwise(v_BTD, gate_BTD, *, state=None, pos=None, chunk: int = 256):
    """An associative scan inside each chunk, the state carried between."""
    _, _, pos_BT, state = _prepare(v_BTD, gate_BTD, state, pos)
    if v_BTD.shape[1] == 0:
        return v_BTD, state
    return _time.scan_chunks(parallel, state, (v_BTD, gate_BTD), pos_BT, chunk)


def summary(v_BTD, gate_BTD, *, pos=None) -> Summary:
    """Product of the forget gates, and the state that the stretch alone leaves behind. T >= 1."""
    return _linear.summary(*_prepare(v_BTD, gate_BTD, None, pos)[:3])


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}


def example(key: jax.Array, batch: int, time: int, dtype=jnp.float32) -> Example:
    def inputs(key, time):
        keys = jax.random.split(key)
        v_BTD = jax.random.normal(keys[0], (batch, time, 5), dtype)
        return v_BTD, jax.random.normal(keys[1], (batch, time, 5), dtype) + 2  # the state lasts for some ten tokens

    key_x, key_prefix = jax.random.split(key)
    v_BTD, gate_BTD = inputs(key_prefix, 32)
    return Example(inputs(key_x, time), {}, {}, recurrent(v_BTD + 1, gate_BTD)[1])
