"""S4: a state space model whose matrix is diagonal plus rank one, discretised by the bilinear rule (Gu et al. 2021).

    x'(t) = A x(t) + b u(t),   y(t) = 2 Re c x(t) + d u(t),   A = diag(lam) - P P*          (arXiv:2111.00396, §3, eq. 1 and 6)
    x_t = (2/dt - A)^-1 ((2/dt + A) x_{t-1} + 2 b u_t),   y_t = 2 Re c x_t + d u_t          (eq. 3)

for each channel. x in C^N holds one value of each of N conjugate pairs; P* x sums over both and is the real number
2 Re sum conj(P) x. The inverse is diagonal plus rank one (§C.1, Woodbury), so a step costs O(N). The parallel and chunkwise forms
need the full matrix: x is then 2N real numbers (real parts, imaginary parts) and A a real 2N x 2N matrix, built by 2N steps.

The filter c A^t b is computed from powers of A (see `_lti`). The paper's Cauchy kernel gives the same filter but needs
c (I - A^T) for a given T; here `c` itself is the parameter. No `summary`: it would be a full matrix per channel and row.

State: x_BDM in the accumulation dtype, in which everything is computed.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq.ops import _lti, _time
from jaxseq.ops._example import Example, stresses
from jaxseq.ops._lti import DENSE, complex_times, conjugate


class DPLRState(NamedTuple):
    """State of N complex numbers per channel, as M = 2N real numbers, in the accumulation dtype."""

    x_BDM: jax.Array  # real parts, then imaginary parts


class Step(NamedTuple):
    """x -> (I - R P*) D (E x - P P* x + 2 b u), with D and R from the inverse; complex numbers as M = 2N real ones."""

    E_DM: jax.Array  # 2/dt + lam
    D_DM: jax.Array  # 1 / (2/dt - lam)
    P_DM: jax.Array
    R_DM: jax.Array  # D P / (1 + P* D P)

    def __call__(self, x: jax.Array, force: jax.Array | float = 0.0) -> jax.Array:
        """x [..., D, M]; `force` is 2 b u."""
        inner = lambda z: 2 * jnp.sum(self.P_DM * z, axis=-1, keepdims=True)  # P* z over both of each pair  # noqa: E731
        z = complex_times(self.D_DM, complex_times(self.E_DM, x) - self.P_DM * inner(x) + force)
        return z - self.R_DM * inner(z)


def discretise(lam_DM: jax.Array, P_DM: jax.Array, dt_D: jax.Array) -> Step:
    """Discretise with step sizes dt by the bilinear rule (eq. 3)."""
    two_DN = jnp.broadcast_to(2 / dt_D[:, None], (lam_DM.shape[0], lam_DM.shape[1] // 2))
    two_DM = jnp.concatenate([two_DN, jnp.zeros_like(two_DN)], axis=1)
    below_DM = conjugate(two_DM - lam_DM)
    re_DN, im_DN = jnp.split(below_DM, 2, axis=1)
    D_DM = below_DM / jnp.tile(re_DN**2 + im_DN**2, (1, 2))
    DP_DM = complex_times(D_DM, P_DM)
    R_DM = DP_DM / (1 + 2 * jnp.sum(P_DM * DP_DM, axis=1, keepdims=True))
    return Step(two_DM + lam_DM, D_DM, P_DM, R_DM)


def init_state(batch: int, width: int, size: int, dtype: DTypeLike = jnp.float32) -> DPLRState:
    """The empty state; `size` is N, the number of complex state values per channel."""
    return DPLRState(jnp.zeros((batch, width, 2 * size), _time.accumulation_dtype(jnp.zeros((), dtype))))


def _prepare(u_BTD, lam_DM, P_DM, b_DM, c_DM, dt_D, d_D, state, pos):
    chex.assert_rank([u_BTD, lam_DM], [3, 2])
    chex.assert_equal_shape([lam_DM, P_DM, b_DM, c_DM])
    chex.assert_axis_dimension(lam_DM, 0, u_BTD.shape[2])
    chex.assert_shape([dt_D, d_D], (u_BTD.shape[2],))
    pos_BT = _time.positions(pos, u_BTD)
    chex.assert_shape(pos_BT, u_BTD.shape[:2])
    acc = _time.accumulation_dtype(u_BTD, lam_DM)
    if state is None:
        state = init_state(u_BTD.shape[0], lam_DM.shape[0], lam_DM.shape[1] // 2, acc)
    chex.assert_shape(state.x_BDM, (u_BTD.shape[0], *lam_DM.shape))
    step = discretise(lam_DM.astype(acc), P_DM.astype(acc), dt_D.astype(acc))
    return acc, pos_BT, step, 2 * b_DM.astype(acc), 2 * conjugate(c_DM.astype(acc)), state


def recurrent(
    u_BTD: jax.Array, *, lam_DM: jax.Array, P_DM: jax.Array, b_DM: jax.Array, c_DM: jax.Array, dt_D: jax.Array, d_D: jax.Array,
    state: DPLRState | None = None, pos: jax.Array | None = None,
) -> tuple[jax.Array, DPLRState]:  # fmt: skip
    """One token after another; O(N) work per channel."""
    acc, pos_BT, move, b_DM, c_DM, state = _prepare(u_BTD, lam_DM, P_DM, b_DM, c_DM, dt_D, d_D, state, pos)

    def step(state, u_BD):
        dtype, u_BD = u_BD.dtype, u_BD.astype(acc)
        x_BDM = move(state.x_BDM, b_DM * u_BD[..., None])
        y_BD = jnp.einsum("bdm,dm->bd", x_BDM, c_DM) + d_D.astype(acc) * u_BD
        return DPLRState(x_BDM), y_BD.astype(dtype)

    return _time.scan_time(step, state, (u_BTD,), pos_BT)


def dense(step: Step, b_DM: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(A as real matrices [D, M, N] with N = M here, the state [D, M] after an input of 1)."""
    width, size = b_DM.shape
    unit_NDM = jnp.broadcast_to(jnp.eye(size, dtype=b_DM.dtype)[:, None], (size, width, size))
    return jnp.transpose(step(unit_NDM), (1, 2, 0)), step(jnp.zeros_like(b_DM), b_DM)


def whole(c_DM: jax.Array, length: int, *, lam_DM: jax.Array, P_DM: jax.Array, dt_D: jax.Array) -> jax.Array:
    """c from c (I - A^length), A discrete: the form used by the truncated generating function (§3.2, lemma C.3)."""
    A_DMN, _ = dense(discretise(lam_DM, P_DM, dt_D), jnp.zeros_like(lam_DM))
    rest_DMN = jnp.eye(lam_DM.shape[1], dtype=A_DMN.dtype) - jnp.linalg.matrix_power(A_DMN, length)
    return conjugate(jnp.linalg.solve(jnp.swapaxes(rest_DMN, 1, 2), conjugate(c_DM)[..., None])[..., 0])


def _run(form, u_BTD, *, lam_DM, P_DM, b_DM, c_DM, dt_D, d_D, state, pos):
    acc, pos_BT, step, b_DM, c_DM, before = _prepare(u_BTD, lam_DM, P_DM, b_DM, c_DM, dt_D, d_D, state, pos)
    if u_BTD.shape[1] == 0:
        return u_BTD, before
    clean_BTD = _time.clean(pos_BT, u_BTD)[0].astype(acc)
    A_DMN, b_DM = dense(step, b_DM)
    y_BTD, x_BDM = form(A_DMN, b_DM, c_DM, clean_BTD, before.x_BDM, pos_BT)
    y_BTD = _time.select(_time.valid(pos_BT), y_BTD + d_D.astype(acc) * clean_BTD)
    return y_BTD.astype(u_BTD.dtype), DPLRState(x_BDM)


def parallel(
    u_BTD: jax.Array, *, lam_DM: jax.Array, P_DM: jax.Array, b_DM: jax.Array, c_DM: jax.Array, dt_D: jax.Array, d_D: jax.Array,
    state: DPLRState | None = None, pos: jax.Array | None = None,
) -> tuple[jax.Array, DPLRState]:  # fmt: skip
    """Convolution of the whole row with the filter by FFTs; log T steps."""

    def form(A, b, c, u, x, pos):
        return _lti.parallel(DENSE, A, b, c, u, None if state is None else x, pos)

    return _run(form, u_BTD, lam_DM=lam_DM, P_DM=P_DM, b_DM=b_DM, c_DM=c_DM, dt_D=dt_D, d_D=d_D, state=state, pos=pos)


def chunkwise(
    u_BTD: jax.Array, *, lam_DM: jax.Array, P_DM: jax.Array, b_DM: jax.Array, c_DM: jax.Array, dt_D: jax.Array, d_D: jax.Array,
    state: DPLRState | None = None, pos: jax.Array | None = None, chunk: int = 64,
) -> tuple[jax.Array, DPLRState]:  # fmt: skip
    """Convolution inside each chunk; the state is carried between chunks. Memory is linear in T."""

    def form(A, b, c, u, x, pos):
        return _lti.chunkwise(DENSE, A, b, c, u, x, pos, chunk)

    return _run(form, u_BTD, lam_DM=lam_DM, P_DM=P_DM, b_DM=b_DM, c_DM=c_DM, dt_D=dt_D, d_D=d_D, state=state, pos=pos)


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}
CUT = "affine"


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`."""
    width, size = 5, 3
    keys = jax.random.split(key, 8)
    decay_DN = jax.random.uniform(keys[0], (width, size), dtype, 0.2, 0.6)
    lam_DM = jnp.concatenate([-decay_DN, jax.random.uniform(keys[1], (width, size), dtype, -9, 9)], axis=1)
    P_DM, b_DM, c_DM = (jax.random.normal(k, lam_DM.shape, dtype) for k in keys[2:5])
    dt_D = jax.random.uniform(keys[5], (width,), dtype, 0.05, 0.3)
    weights: dict[str, Any] = {"lam_DM": lam_DM, "P_DM": 0.5 * P_DM, "b_DM": b_DM, "c_DM": c_DM, "dt_D": dt_D}
    weights["d_D"] = 0.1 * jnp.ones_like(dt_D)
    state = recurrent(jax.random.normal(keys[6], (batch, 24, width), dtype), **weights)[1]
    return Example((jax.random.normal(keys[7], (batch, time, width), dtype),), weights, {}, state)


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """The hard inputs by name, see `jaxseq.ops.stresses`."""
    base = example(key, batch, time, dtype)
    lam_DM, dt_D = base.weights["lam_DM"], base.weights["dt_D"]
    re_DN, im_DN = jnp.split(lam_DM, 2, axis=1)

    def decayed(log_DN):
        lam_DM = jnp.concatenate([log_DN / dt_D[:, None], im_DN], axis=1)
        return base._replace(weights=base.weights | {"lam_DM": lam_DM, "P_DM": 1e-3 * base.weights["P_DM"]})

    return stresses(key, base, re_DN.shape, decayed)
