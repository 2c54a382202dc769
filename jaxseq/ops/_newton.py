"""All states of a nonlinear recurrence at once: Newton's method, whose linear systems are associative scans.

The states s_1 .. s_T of s_t = f(s_{t-1}, x_t) are the zero of r_t = f(s_{t-1}, x_t) - s_t. Newton's correction solves

    d_t = J_t d_{t-1} + r_t,    d_0 = 0,    J_t = df/ds at (s_{t-1}, x_t),

a linear recurrence (DEER, Lim et al. 2023, arXiv:2309.12252, §3). Convergence is quadratic; an iteration costs the product of
two M x M matrices a token, M being the size of a head's state, or of a channel's where channels do not meet. After k iterations
the first k states are exact; where the recurrence is chaotic it may need T of them.

An iteration is the last when every state satisfies its step to `TOLERANCE` roundings of its own size (relative to 1 + |s|),
which is about what a step of the recurrent form makes, and it still corrects them. A row that has not converged after
`iterations` becomes NaN; there is no fallback. Where values are known, outside jit, that is a UserError.

Gradients are those of the states, not of the iteration: the adjoint l_t = g_t + J_{t+1}^T l_{t+1} is the same scan backwards
with the true Jacobian, and one pull-back of f at all tokens takes l to inputs, weights and initial state. What is kept for
it: the states, no matter how many iterations.

With the initial weights of layers of 8 heads of 16 channels, 1024 tokens in float32 took 6 iterations (LSTM) and 5 (GRU); 128
channels of SRU took 9. It is for devices that have many more lanes than a step fills: on two CPU cores `recurrent` was the
fastest form at every size tried. One row of 4096 tokens through 8 heads of 16 of an LSTM took it 46 ms, chunkwise 1.1 s,
parallel 5.5 s; through 4 channels of SRU 0.4 ms, chunkwise 4 ms, parallel 15 ms.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxseq.errors import UserError
from jaxseq.ops import _time

ITERATIONS = 100
TOLERANCE = 32.0  # roundings


class Recurrence(NamedTuple):
    """A state is [..., K, P]: K channels of P numbers; x and s share their leading axes, [B, T, ...] or [B, ...]."""

    step: Callable  # (s, xs, weights) -> the next s
    output: Callable  # (s, the next s, xs, weights) -> y
    # (s, xs, weights) -> the step's derivative, next by last: [..., K, P, K, P]; None: channels of one number that do not meet
    jacobian: Callable | None
    bound: Callable  # (first s, xs) -> how large |s| can be at any token, [B, T, ...]: Newton's overshoots are cut there


def _linear(J, b, reverse: bool = False):
    """d_t = J_t d_{t-1} + b_t from d = 0, over axis 1: J [B, T, ..., M, M], b [B, T, ..., M]."""
    if J.shape[-1] == 1:
        times, on = jnp.multiply, lambda A, b: A[..., 0] * b
    else:
        times = functools.partial(jnp.matmul, precision="highest")
        on = functools.partial(jnp.einsum, "...ij,...j->...i", precision="highest")

    def combine(first, second):
        return times(second[0], first[0]), on(second[0], first[1]) + second[1]

    return jax.lax.associative_scan(combine, (J, b), reverse=reverse, axis=1)[1]


def _before(first, s, pos_BT):
    """The state in front of each token."""
    return _time.select(pos_BT != _time.START, jnp.concatenate([first[:, None], s], axis=1)[:, :-1])


def _steps(f: Recurrence, first, s, xs, weights, pos_BT):
    """(states in front of each token, the step from there); padding hands on what was in front of it."""
    before = _before(first, s, pos_BT)
    return before, _time.select(_time.valid(pos_BT), f.step(before, xs, weights), before)


def derivative(f: Recurrence, s, xs, weights):
    """[..., K, P, K, P], or [..., K, 1, 1] of channels that do not meet: then one forward pass with ones gives all of it."""
    if f.jacobian is not None:
        return f.jacobian(s, xs, weights)
    return jax.jvp(lambda s: f.step(s, xs, weights), (s,), (jnp.ones_like(s),))[1][..., None]


def _jacobian(f: Recurrence, before, xs, weights, pos_BT):
    """[B, T, ..., M, M] with M = K P, or [B, T, ..., K, 1, 1]; zero where a document starts, the identity under padding."""
    J = derivative(f, before, xs, weights)
    if f.jacobian is not None:
        M = before.shape[-2] * before.shape[-1]
        J = J.reshape(*before.shape[:-2], M, M)
    J = _time.select(pos_BT != _time.START, J)
    return _time.select(_time.valid(pos_BT), J, jnp.eye(J.shape[-1], dtype=J.dtype))


def _correction(f: Recurrence, J, r, reverse=False):
    flat = r if f.jacobian is None else r.reshape(*r.shape[:-2], -1)
    d = _linear(J, flat, reverse).reshape(r.shape)
    return jnp.where(jnp.isfinite(d), d, 0)  # a product of Jacobians that overflowed says nothing


def _rows(x):
    """The largest of each row [B]."""
    return jnp.max(x.reshape(x.shape[0], -1), axis=1)


def _iterate(correct: Callable, s, iterations: int, tolerance):
    """s, error_B, count: `correct(s) -> s, error of the s that it was given [B]` until every error is small."""

    def going_on(carry):
        _, error_B, count = carry
        return jax.lax.bitwise_and(count < iterations, ~jnp.all(error_B <= tolerance))

    def body(carry):
        s, error_B = correct(carry[0])
        return s, error_B, carry[2] + 1

    return jax.lax.while_loop(going_on, body, (s, jnp.full(s.shape[:1], jnp.inf, s.dtype), jnp.int32(0)))


def _tolerance(dtype):
    return TOLERANCE * jnp.finfo(dtype).eps


def _poison(s, error_B):
    return _time.select(error_B <= _tolerance(s.dtype), s, jnp.nan)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _solve(f: Recurrence, iterations: int, first, xs, weights, pos_BT):
    limit = f.bound(first, xs)

    def correct(s):
        before, after = _steps(f, first, s, xs, weights, pos_BT)
        error_B = _rows(jnp.abs(after - s) / (1 + jnp.abs(after)))
        s += _correction(f, _jacobian(f, before, xs, weights, pos_BT), after - s)
        return jnp.clip(s, -limit, limit), error_B

    s = jnp.zeros((first.shape[0], pos_BT.shape[1], *first.shape[1:]), first.dtype)
    s, error_B, count = _iterate(correct, s, iterations, _tolerance(s.dtype))
    return _poison(s, error_B), count


def _solve_forward(f, iterations, first, xs, weights, pos_BT):
    s, count = _solve(f, iterations, first, xs, weights, pos_BT)
    return (s, count), (first, s, xs, weights, pos_BT)


def _solve_backward(f, iterations, residuals, cotangents):
    first, s, xs, weights, pos_BT = residuals
    g = cotangents[0]
    before = _steps(f, first, s, xs, weights, pos_BT)[0]
    J = jnp.swapaxes(_jacobian(f, before, xs, weights, pos_BT), -1, -2)
    J = jnp.concatenate([J[:, 1:], jnp.zeros_like(J[:, :1])], axis=1)
    adjoint = _correction(f, J, g, reverse=True)
    pull = jax.vjp(lambda *known: _steps(f, known[0], s, *known[1:], pos_BT)[1], first, xs, weights)[1]
    return *pull(adjoint), None


_solve.defvjp(_solve_forward, _solve_backward)


def solve(f: Recurrence, first, xs: tuple, weights, pos_BT, iterations: int = ITERATIONS):
    """(states [B, T, ..., K, P], iterations that were run) from the state `first` [B, ..., K, P]; T >= 1.

    xs are clean of padding; everything is in one dtype. Rows that did not converge are NaN.
    """
    return _compiled(f, iterations, first, xs, weights, pos_BT)


_compiled = jax.jit(_solve, static_argnums=(0, 1))  # one program for those who call it outside jit


def _checked(y, name: str):
    """y; raises UserError if it is known here (outside jit, vmap and grad) and a row of it did not converge."""
    if not isinstance(y, jax.core.Tracer) and bool(jnp.any(jnp.isnan(y))):
        raise UserError(
            f"the states of {name} did not converge in {ITERATIONS} Newton iterations, or its inputs are not finite; run it in "
            'form="recurrent", or chunkwise with smaller chunks'
        )
    return y


class Op(NamedTuple):
    """What an op brings to the forms below.

    prepare(*xs, state, pos, **weights) -> clean (xs, weights, first s, pos_BT) in the accumulation dtype; unpack(s) -> state.
    """

    name: str
    recurrence: Recurrence
    prepare: Callable
    unpack: Callable


def recurrent(op: Op, *xs, state, pos, **weights):
    """One token after another."""
    f = op.recurrence
    inputs, w, first, pos_BT = op.prepare(*xs, state=state, pos=pos, **weights)

    def step(s, *x):
        after = f.step(s, x, w)
        return after, f.output(s, after, x, w).astype(xs[0].dtype)

    y, s = _time.scan_time(step, first, inputs, pos_BT)
    return y, op.unpack(s)


def parallel(op: Op, *xs, state, pos, **weights):
    """Newton's method on the whole sequence, with the whole Jacobian of each head."""
    f = op.recurrence
    inputs, w, first, pos_BT = op.prepare(*xs, state=state, pos=pos, **weights)
    s = solve(f, first, inputs, w, pos_BT)[0] if xs[0].shape[1] else jnp.zeros_like(first)[:, None][:, :0]
    before = _before(first, s, pos_BT)
    y = _time.select(_time.valid(pos_BT), f.output(before, s, inputs, w)).astype(xs[0].dtype)
    return _checked(y, op.name), op.unpack(jnp.concatenate([first[:, None], s], axis=1)[:, -1])


def chunkwise(op: Op, *xs, state, pos, chunk: int, **weights):
    """Newton's method inside each chunk, the state carried between; only the states are kept for the backward pass.

    A chunk of fewer than ITERATIONS tokens converges even where the recurrence is chaotic, as long as nothing overflows.
    """
    inputs, _, first, pos_BT = op.prepare(*xs, state=state, pos=pos, **weights)
    if xs[0].shape[1] == 0:
        return parallel(op, *xs, state=state, pos=pos, **weights)
    form = functools.partial(parallel, op, **weights)
    y, state = _time.scan_chunks(form, op.unpack(first), _time.clean(pos_BT, *xs), pos_BT, chunk, remat=False)
    return _checked(y, op.name), state
