"""The recurrence of the RG-LRU (De et al. 2024, arXiv:2402.19427, §2.4, eq. 4): linear, with a decay per channel and token.

    h_t = a_t h_{t-1} + x_t,   y_t = h_t

`log_a_BTD <= 0` is log a_t and depends on the data. x has had its input gate and the multiplier sqrt(1 - a_t^2), which is 1 at
the first token of a document: it is a function of the position and so belongs to the mixer, here a start only forgets the state.

State: h [B, D] in the accumulation dtype, in which everything is computed.
"""

import chex
import jax
import jax.numpy as jnp

from jaxseq.ops import _linear, _time
from jaxseq.ops._example import Example
from jaxseq.ops._linear import LinearState, Summary, apply, combine, init_state

__all__ = ["FORMS", "LinearState", "Summary", "apply", "chunkwise", "combine", "example", "init_state", "parallel", "recurrent"]


def _prepare(x_BTD, log_a_BTD, state, pos):
    """a_t, x_t, positions and state."""
    chex.assert_rank(x_BTD, 3)
    chex.assert_equal_shape([x_BTD, log_a_BTD])
    pos_BT = _time.positions(pos, x_BTD)
    chex.assert_shape(pos_BT, x_BTD.shape[:2])
    acc = _time.accumulation_dtype(x_BTD, log_a_BTD)
    state = init_state(x_BTD.shape[0], x_BTD.shape[2], acc) if state is None else state
    chex.assert_shape(state.h_BD, (x_BTD.shape[0], x_BTD.shape[2]))
    x_BTD, log_a_BTD = (z.astype(acc) for z in _time.clean(pos_BT, x_BTD, log_a_BTD))
    return jnp.exp(log_a_BTD), x_BTD, pos_BT, state


def _run(scan, x_BTD, log_a_BTD, state, pos):
    a_BTD, b_BTD, pos_BT, state = _prepare(x_BTD, log_a_BTD, state, pos)
    if x_BTD.shape[1] == 0:
        return x_BTD, state
    h_BTD = scan(a_BTD, b_BTD, state.h_BD, pos_BT)
    return _time.select(_time.valid(pos_BT), h_BTD).astype(x_BTD.dtype), LinearState(h_BTD[:, -1])


def recurrent(x_BTD, log_a_BTD, *, state=None, pos=None):
    """One token after another."""
    return _run(_linear.steps, x_BTD, log_a_BTD, state, pos)


def parallel(x_BTD, log_a_BTD, *, state=None, pos=None):
    """`jax.lax.associative_scan` over time: log T steps."""
    return _run(_linear.associative, x_BTD, log_a_BTD, state, pos)


def chunkwise(x_BTD, log_a_BTD, *, state=None, pos=None, chunk: int = 256):
    """An associative scan inside each chunk, the state carried between."""
    _, _, pos_BT, state = _prepare(x_BTD, log_a_BTD, state, pos)
    if x_BTD.shape[1] == 0:
        return x_BTD, state
    return _time.scan_chunks(parallel, state, (x_BTD, log_a_BTD), pos_BT, chunk)


def summary(x_BTD, log_a_BTD, *, pos=None) -> Summary:
    """Product of the decays, and the state that the stretch alone leaves behind. T >= 1."""
    return _linear.summary(*_prepare(x_BTD, log_a_BTD, None, pos)[:3])


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}


def example(key: jax.Array, batch: int, time: int, dtype=jnp.float32) -> Example:
    def inputs(key, time):
        keys = jax.random.split(key)
        x_BTD = jax.random.normal(keys[0], (batch, time, 5), dtype)
        return x_BTD, -jax.nn.softplus(jax.random.normal(keys[1], (batch, time, 5), dtype) - 2)

    key_x, key_prefix = jax.random.split(key)
    return Example(inputs(key_x, time), {}, {}, recurrent(*inputs(key_prefix, 32))[1])
