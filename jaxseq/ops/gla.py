"""Gated linear attention: linear attention with a decay per key channel (Yang et al. 2023, arXiv:2312.06635, eq. 3).

    S_t = diag(e^{log_w_t}) S_{t-1} + k_t^T v_t         S [K, V] per head
    y_t = q_t S_t

log_w <= 0 depends on the data. With one decay per head this is `retention`. The contribution of S_{t-1} to y_t is computed by the
forms of `wkv6` with r_t = q_t e^{log_w_t} and no bonus. The mixer scales the queries. State: S_BHKV in the accumulation dtype, in
which everything is computed.
"""

import functools

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq.ops import _time, wkv6
from jaxseq.ops._example import Example, stresses
from jaxseq.ops.wkv6 import Summary, apply, combine, init_state
from jaxseq.ops.wkv6 import WKV6State as GLAState

__all__ = ["FORMS", "GLAState", "Summary", "apply", "combine", "example", "init_state", "stress", "summary"]


def _run(form, q_BTHK, k_BTHK, v_BTHV, log_w_BTHK, state, pos):
    chex.assert_rank([q_BTHK, v_BTHV], 4)
    chex.assert_equal_shape([q_BTHK, k_BTHK, log_w_BTHK])
    chex.assert_equal_shape_prefix([q_BTHK, v_BTHV], 3)
    pos_BT = _time.positions(pos, q_BTHK)
    acc = _time.accumulation_dtype(q_BTHK, v_BTHV, log_w_BTHK)
    q, k, v, log_w = (x.astype(acc) for x in _time.clean(pos_BT, q_BTHK, k_BTHK, v_BTHV, log_w_BTHK))
    none_HK = jnp.zeros(q.shape[2:], acc)
    y_BTHV, state = form(q * jnp.exp(log_w), k, v, log_w, u_HK=none_HK, state=state, pos=pos)
    return (y_BTHV + jnp.sum(q * k, axis=-1, keepdims=True) * v).astype(q_BTHK.dtype), state


def recurrent(
    q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, log_w_BTHK: jax.Array, *, state: GLAState | None = None,
    pos: jax.Array | None = None,
) -> tuple[jax.Array, GLAState]:  # fmt: skip
    """One token after another."""
    return _run(wkv6.recurrent, q_BTHK, k_BTHK, v_BTHV, log_w_BTHK, state, pos)


def parallel(
    q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, log_w_BTHK: jax.Array, *, state: GLAState | None = None,
    pos: jax.Array | None = None,
) -> tuple[jax.Array, GLAState]:  # fmt: skip
    """All chunks of 64 tokens at once; their states are combined by an associative scan."""
    return _run(wkv6.parallel, q_BTHK, k_BTHK, v_BTHV, log_w_BTHK, state, pos)


def chunkwise(
    q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, log_w_BTHK: jax.Array, *, state: GLAState | None = None,
    pos: jax.Array | None = None, chunk: int = 64,
) -> tuple[jax.Array, GLAState]:  # fmt: skip
    """Matrix products inside each chunk; the state is carried between chunks. Memory is linear in T."""
    return _run(functools.partial(wkv6.chunkwise, chunk=chunk), q_BTHK, k_BTHK, v_BTHV, log_w_BTHK, state, pos)


def summary(
    q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, log_w_BTHK: jax.Array, *, pos: jax.Array | None = None
) -> Summary:
    """The `Summary` of the segment. T >= 1."""
    return wkv6.summary(q_BTHK, k_BTHK, v_BTHV, log_w_BTHK, u_HK=jnp.zeros(q_BTHK.shape[2:], q_BTHK.dtype), pos=pos)


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}
CUT = "affine"


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`."""
    def inputs(key, time):
        keys = jax.random.split(key, 4)
        q_BTHK, k_BTHK, log_w_BTHK = (jax.random.normal(k, (batch, time, 2, 4), dtype) for k in keys[:3])
        v_BTHV = jax.random.normal(keys[3], (batch, time, 2, 3), dtype)
        return q_BTHK, k_BTHK, v_BTHV, -jax.nn.softplus(log_w_BTHK - 2)

    key_x, key_prefix = jax.random.split(key)
    return Example(inputs(key_x, time), {}, {}, recurrent(*inputs(key_prefix, 32))[1])


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """The hard inputs by name, see `jaxseq.ops.stresses`."""
    base = example(key, batch, time, dtype)
    *qkv, log_w_BTHK = base.xs
    return stresses(key, base, log_w_BTHK.shape, lambda log_w_BTHK: base._replace(xs=(*qkv, log_w_BTHK)))
