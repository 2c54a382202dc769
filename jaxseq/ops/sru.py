"""Simple recurrent unit, version 2 (Lei et al. 2018, arXiv:1709.02755, §3, eq. 1 to 4).

    f_t = sigmoid(f'_t + v_f c_{t-1})
    c_t = f_t c_{t-1} + (1 - f_t) u_t
    r_t = sigmoid(r'_t + v_r c_{t-1})
    y_t = r_t c_t + (1 - r_t) x_t

with f', r' and u affine in the token and x the highway input. v_f c_{t-1} makes the recurrence nonlinear, but channels are
independent: Newton's method needs only a diagonal Jacobian. See `jaxseq.ops._newton` for the tolerance, the limit on iterations
and rows that do not converge.

State: c [B, D] in the accumulation dtype, in which everything is computed.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq.ops import _gated, _newton, _time
from jaxseq.ops._example import Example, gates, stresses


class SRUState(NamedTuple):
    """State c [B, D], in the accumulation dtype."""

    c_BD: jax.Array


def init_state(batch: int, width: int, dtype: DTypeLike = jnp.float32) -> SRUState:
    """The empty state, in the accumulation dtype for inputs of `dtype`."""
    return SRUState(jnp.zeros((batch, width), _time.accumulation_dtype(jnp.zeros((), dtype))))


def _step(s, xs, weights):
    u, f, _, _ = xs
    f, rest = _gated.sigmoids(f[..., None] + weights[0][:, None] * s)
    return f * s + rest * u[..., None]


def _output(s, after, xs, weights):
    _, _, r, x = xs
    r, rest = _gated.sigmoids(r + weights[1] * s[..., 0])
    return r * after[..., 0] + rest * x


def _bound(first, xs):
    """c_t lies between c_{t-1} and u_t."""
    return jnp.maximum(jnp.abs(first[:, None]), jnp.max(jnp.abs(xs[0]), axis=1, keepdims=True)[..., None])


RECURRENCE = _newton.Recurrence(_step, _output, None, _bound)


def prepare(
    u_BTD: jax.Array, f_BTD: jax.Array, r_BTD: jax.Array, x_BTD: jax.Array, *, v_f_D: jax.Array, v_r_D: jax.Array,
    state: SRUState | None = None, pos: jax.Array | None = None,
) -> tuple[tuple, tuple, jax.Array, jax.Array]:  # fmt: skip
    """(u, f', r', x), (v_f, v_r), initial state [B, D, 1], pos_BT; in the accumulation dtype, inputs zero at padding."""
    xs = u_BTD, f_BTD, r_BTD, x_BTD
    chex.assert_rank(u_BTD, 3)
    chex.assert_equal_shape(xs)
    chex.assert_shape([v_f_D, v_r_D], u_BTD.shape[2:])
    pos_BT = _time.positions(pos, u_BTD)
    chex.assert_shape(pos_BT, u_BTD.shape[:2])
    acc = _time.accumulation_dtype(*xs)
    state = init_state(u_BTD.shape[0], u_BTD.shape[2], acc) if state is None else state
    chex.assert_shape(state.c_BD, (u_BTD.shape[0], u_BTD.shape[2]))
    xs = tuple(x.astype(acc) for x in _time.clean(pos_BT, *xs))
    return xs, (v_f_D.astype(acc), v_r_D.astype(acc)), state.c_BD[..., None], pos_BT


def _unpack(s) -> SRUState:
    return SRUState(s[..., 0])


OP = _newton.Op("sru", RECURRENCE, prepare, _unpack)


def recurrent(
    u_BTD: jax.Array, f_BTD: jax.Array, r_BTD: jax.Array, x_BTD: jax.Array, *, v_f_D: jax.Array, v_r_D: jax.Array,
    state: SRUState | None = None, pos: jax.Array | None = None,
) -> tuple[jax.Array, SRUState]:  # fmt: skip
    """One token after another."""
    return _newton.recurrent(OP, u_BTD, f_BTD, r_BTD, x_BTD, v_f_D=v_f_D, v_r_D=v_r_D, state=state, pos=pos)


def parallel(
    u_BTD: jax.Array, f_BTD: jax.Array, r_BTD: jax.Array, x_BTD: jax.Array, *, v_f_D: jax.Array, v_r_D: jax.Array,
    state: SRUState | None = None, pos: jax.Array | None = None,
) -> tuple[jax.Array, SRUState]:  # fmt: skip
    """Newton's method on the whole sequence."""
    return _newton.parallel(OP, u_BTD, f_BTD, r_BTD, x_BTD, v_f_D=v_f_D, v_r_D=v_r_D, state=state, pos=pos)


def chunkwise(
    u_BTD: jax.Array, f_BTD: jax.Array, r_BTD: jax.Array, x_BTD: jax.Array, *, v_f_D: jax.Array, v_r_D: jax.Array,
    state: SRUState | None = None, pos: jax.Array | None = None, chunk: int = 64,
) -> tuple[jax.Array, SRUState]:  # fmt: skip
    """Newton's method inside each chunk; the state is carried between chunks."""
    return _newton.chunkwise(OP, u_BTD, f_BTD, r_BTD, x_BTD, v_f_D=v_f_D, v_r_D=v_r_D, state=state, pos=pos, chunk=chunk)


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}
CUT = "serial"


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`."""
    def inputs(key, time):
        u, f, r, x = (jax.random.normal(k, (batch, time, 5), dtype) for k in jax.random.split(key, 4))
        return u, f + 2, r, x / 4  # a memory of about ten tokens

    keys = jax.random.split(key, 3)
    v_f_D, v_r_D = jax.random.normal(keys[0], (2, 5), dtype)
    weights = {"v_f_D": v_f_D, "v_r_D": v_r_D}
    u, *rest = inputs(keys[1], 32)
    state = recurrent(u + 2, *rest, **weights)[1]
    return Example(inputs(keys[2], time), weights, {}, state)


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """The hard inputs by name, see `jaxseq.ops.stresses`."""
    base = example(key, batch, time, dtype)
    u, f, *rest = base.xs
    large = base._replace(weights=jax.tree.map(lambda w: 4 * w, base.weights))
    return stresses(key, base, f.shape, lambda log_f: base._replace(xs=(u, gates(log_f), *rest)), large=large)
