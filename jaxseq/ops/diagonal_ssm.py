"""A time-invariant state space model with a diagonal matrix: S4D, H3, and filters in modal form.

    x_t = p * x_{t-1} + b u_t               p, b, c in C^N for each channel
    y_t = Re sum_n c_n x_{t,n} + d u_t      a filter h_t = Re sum_n c_n p_n^t b_n and a skip connection

Gu et al. 2022 (arXiv:2206.11893, eq. 2 and 3). The mixer discretises the parameters. Each conjugate pair is one n, and c includes
the factor 2 in front of Re. Massaroli et al. 2023 (arXiv:2310.18780, eq. 3.1 and 3.2): p are the poles, c the residues, b = 1. A
complex array is stored as M = 2N real numbers: real parts, then imaginary parts. |p| <= 1 is required, or long rows overflow.

State: x_BDM in the accumulation dtype, in which everything is computed. Resets are exact in all forms: contributions across
document borders are masked out before they are summed (see `_convolution`).
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq.ops import _lti, _time
from jaxseq.ops._example import Example, stresses
from jaxseq.ops._lti import DIAGONAL, complex_times, conjugate


class DiagonalSSMState(NamedTuple):
    """State of N complex numbers per channel, as M = 2N real numbers, in the accumulation dtype."""

    x_BDM: jax.Array  # real parts, then imaginary parts


class Summary(NamedTuple):
    """Effect of a segment on the incoming state: x -> A x + x'."""

    A_BDM: jax.Array  # p^(number of tokens); 0 if a document starts in the segment
    x_BDM: jax.Array


def init_state(batch: int, width: int, size: int, dtype: DTypeLike = jnp.float32) -> DiagonalSSMState:
    """The empty state; `size` is N, the number of complex state values per channel."""
    return DiagonalSSMState(jnp.zeros((batch, width, 2 * size), _time.accumulation_dtype(jnp.zeros((), dtype))))


def _prepare(u_BTD, p_DM, b_DM, c_DM, d_D, state, pos):
    chex.assert_rank([u_BTD, p_DM], [3, 2])
    chex.assert_equal_shape([p_DM, b_DM, c_DM])
    chex.assert_axis_dimension(p_DM, 0, u_BTD.shape[2])
    chex.assert_shape(d_D, (u_BTD.shape[2],))
    pos_BT = _time.positions(pos, u_BTD)
    chex.assert_shape(pos_BT, u_BTD.shape[:2])
    acc = _time.accumulation_dtype(u_BTD, p_DM)
    if state is not None:
        chex.assert_shape(state.x_BDM, (u_BTD.shape[0], *p_DM.shape))
    weights = (p_DM.astype(acc), b_DM.astype(acc), conjugate(c_DM.astype(acc)))  # Re(c x) is conj(c) . x over M
    return acc, pos_BT, weights


def _empty(u_BTD, p_DM, acc) -> DiagonalSSMState:
    return init_state(u_BTD.shape[0], p_DM.shape[0], p_DM.shape[1] // 2, acc)


def recurrent(
    u_BTD: jax.Array, *, p_DM: jax.Array, b_DM: jax.Array, c_DM: jax.Array, d_D: jax.Array,
    state: DiagonalSSMState | None = None, pos: jax.Array | None = None,
) -> tuple[jax.Array, DiagonalSSMState]:  # fmt: skip
    """One token after another."""
    acc, pos_BT, (p_DM, b_DM, c_DM) = _prepare(u_BTD, p_DM, b_DM, c_DM, d_D, state, pos)

    def step(state, u_BD):
        dtype, u_BD = u_BD.dtype, u_BD.astype(acc)
        x_BDM = complex_times(p_DM, state.x_BDM) + b_DM * u_BD[..., None]
        y_BD = jnp.einsum("bdm,dm->bd", x_BDM, c_DM) + d_D.astype(acc) * u_BD
        return DiagonalSSMState(x_BDM), y_BD.astype(dtype)

    return _time.scan_time(step, _empty(u_BTD, p_DM, acc) if state is None else state, (u_BTD,), pos_BT)


def _finish(y_BTD, u_BTD, d_D, pos_BT, dtype):
    return _time.select(_time.valid(pos_BT), y_BTD + d_D.astype(y_BTD.dtype) * u_BTD).astype(dtype)


def parallel(
    u_BTD: jax.Array, *, p_DM: jax.Array, b_DM: jax.Array, c_DM: jax.Array, d_D: jax.Array,
    state: DiagonalSSMState | None = None, pos: jax.Array | None = None,
) -> tuple[jax.Array, DiagonalSSMState]:  # fmt: skip
    """Convolution of the whole row with the filter h by FFTs; log T steps."""
    acc, pos_BT, (p_DM, b_DM, c_DM) = _prepare(u_BTD, p_DM, b_DM, c_DM, d_D, state, pos)
    if u_BTD.shape[1] == 0:
        return u_BTD, _empty(u_BTD, p_DM, acc) if state is None else state
    clean_BTD = _time.clean(pos_BT, u_BTD)[0].astype(acc)
    x_BDM = None if state is None else state.x_BDM
    y_BTD, x_BDM = _lti.parallel(DIAGONAL, p_DM, b_DM, c_DM, clean_BTD, x_BDM, pos_BT)
    return _finish(y_BTD, clean_BTD, d_D, pos_BT, u_BTD.dtype), DiagonalSSMState(x_BDM)


def chunkwise(
    u_BTD: jax.Array, *, p_DM: jax.Array, b_DM: jax.Array, c_DM: jax.Array, d_D: jax.Array,
    state: DiagonalSSMState | None = None, pos: jax.Array | None = None, chunk: int = 64,
) -> tuple[jax.Array, DiagonalSSMState]:  # fmt: skip
    """Convolution inside each chunk; the state is carried between chunks. Memory is linear in T."""
    acc, pos_BT, (p_DM, b_DM, c_DM) = _prepare(u_BTD, p_DM, b_DM, c_DM, d_D, state, pos)
    state = _empty(u_BTD, p_DM, acc) if state is None else state
    if u_BTD.shape[1] == 0:
        return u_BTD, state
    clean_BTD = _time.clean(pos_BT, u_BTD)[0].astype(acc)
    y_BTD, x_BDM = _lti.chunkwise(DIAGONAL, p_DM, b_DM, c_DM, clean_BTD, state.x_BDM, pos_BT, chunk)
    return _finish(y_BTD, clean_BTD, d_D, pos_BT, u_BTD.dtype), DiagonalSSMState(x_BDM)


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}
CUT = "affine"


def summary(
    u_BTD: jax.Array, *, p_DM: jax.Array, b_DM: jax.Array, c_DM: jax.Array, d_D: jax.Array, pos: jax.Array | None = None
) -> Summary:
    """p^T, and the state after the segment starting from zero. T >= 1."""
    acc, pos_BT, (p_DM, b_DM, _) = _prepare(u_BTD, p_DM, b_DM, c_DM, d_D, None, pos)
    ones_BDM = _empty(u_BTD, p_DM, acc).x_BDM.at[..., : p_DM.shape[1] // 2].set(1)
    squares = _lti.squares(DIAGONAL, p_DM, u_BTD.shape[1])
    A_BDM = _lti.advance(DIAGONAL, squares, ones_BDM, jnp.sum(_time.valid(pos_BT), axis=1))
    x_BDM = _lti.total(DIAGONAL, p_DM, b_DM, _time.clean(pos_BT, u_BTD)[0].astype(acc), pos_BT)
    return Summary(_time.select(_time.continues(pos_BT), A_BDM), x_BDM)


def combine(first: Summary, second: Summary) -> Summary:
    """The summary of two segments, one after the other; associative."""
    return Summary(complex_times(second.A_BDM, first.A_BDM), complex_times(second.A_BDM, first.x_BDM) + second.x_BDM)


def apply(summary: Summary, state: DiagonalSSMState) -> DiagonalSSMState:
    """The state after a segment with this summary, for the state before it."""
    return DiagonalSSMState(complex_times(summary.A_BDM, state.x_BDM) + summary.x_BDM)


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`."""
    width, size = 5, 3
    keys = jax.random.split(key, 7)
    part_DM = jax.random.uniform(keys[0], (width, 2 * size), dtype, 0.55, 0.69)  # |p| < 1 for any pairing
    p_DM = part_DM * jax.random.rademacher(keys[1], part_DM.shape, dtype)
    b_DM, c_DM = (jax.random.normal(k, p_DM.shape, dtype) for k in keys[2:4])
    weights: dict[str, Any] = {"p_DM": p_DM, "b_DM": b_DM, "c_DM": c_DM, "d_D": jax.random.normal(keys[4], (width,), dtype)}
    state = recurrent(jax.random.normal(keys[5], (batch, 24, width), dtype), **weights)[1]
    return Example((jax.random.normal(keys[6], (batch, time, width), dtype),), weights, {}, state)


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """The hard inputs by name, see `jaxseq.ops.stresses`."""
    base = example(key, batch, time, dtype)
    p_DM = base.weights["p_DM"]
    angle_DN = jnp.arctan2(*jnp.split(p_DM, 2, axis=1)[::-1])
    unit_DM = jnp.concatenate([jnp.cos(angle_DN), jnp.sin(angle_DN)], axis=1)

    def decayed(log_DN):
        return base._replace(weights=base.weights | {"p_DM": unit_DM * jnp.tile(jnp.exp(log_DN), (1, 2))})

    return stresses(key, base, angle_DN.shape, decayed)
