"""Newton's method with associative scans: Jacobians, numbers of iterations, and errors without convergence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq import UserError, registry
from jaxseq.ops import _newton, gru, lstm, sru, time
from jaxseq.testing import compare
from jaxseq.testing.loops import longest_loop

OPS = ("lstm", "gru", "sru")


def case(name: str, time: int = 32):
    """(op, xs, weights, first, s, positions) in float64: clean inputs, and a random state for each token."""
    op, rng = registry.load("ops", name), np.random.default_rng(0)

    @jax.jit
    def make(key):
        example = op.example(key, 2, time, jnp.float64)
        return op.prepare(*example.xs, **example.weights, state=example.state)

    xs, weights, first, pos = jax.device_get(make(jax.random.key(0, impl="unsafe_rbg")))
    return op, xs, weights, first, rng.normal(size=(2, time, *first.shape[1:])), pos


@pytest.mark.parametrize("name", OPS)
def test_jacobians_are_those_of_the_step(x64, name):
    op, xs, weights, _, s, _ = case(name, 3)
    f, step = op.RECURRENCE, lambda s, xs: op.RECURRENCE.step(s, xs, weights)
    wanted = jax.jit(jax.vmap(jax.vmap(jax.jacobian(step))))(s, xs)  # [B, T, (H,) K, P, (H,) K, P]
    meeting = "...kpkq->...kpq" if f.jacobian is None else "bthkphjq->bthkpjq"  # channels or heads are independent
    found = jax.jit(functools.partial(_newton.derivative, f))(s, xs, weights)
    assert compare.error(found, np.einsum(meeting, wanted)) < 1e-12


@pytest.mark.parametrize("op, times", [(lstm, 3), (gru, 3)])
def test_a_written_jacobian_takes_far_fewer_operations_than_a_derived_one(op, times):
    """One head of 16 channels. SRU has none, because its channels are independent: one forward pass gives its whole Jacobian."""
    gates = {lstm: 4, gru: 3}[op]
    u, w, b = jnp.ones((1, 2, 1, gates, 16)), jnp.ones((1, 16, gates, 16)), jnp.ones((1, gates, 16))
    xs, weights, first, _ = op.prepare(u, w_HKPJ=w, b_HPK=b)
    s = jnp.broadcast_to(first[:, None], (1, 2, *first.shape[1:]))
    derived = jax.vmap(jax.vmap(jax.jacfwd(lambda s, xs: op.RECURRENCE.step(s, xs, weights))))

    def operations(function, *arguments) -> float:
        return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]

    assert operations(derived, s, xs) > times * operations(op.RECURRENCE.jacobian, s, xs, weights)


@pytest.mark.parametrize("name", OPS)
def test_few_iterations_reach_the_states(x64, name):
    """Quadratic convergence: 32 tokens need far fewer than 32 iterations; the last one only confirms."""
    op, xs, weights, first, _, pos = case(name)
    step = jax.jit(op.RECURRENCE.step)
    states = [first]
    for t in range(pos.shape[1]):
        states.append(step(states[-1], tuple(x[:, t] for x in xs), weights))
    wanted = np.stack(states[1:], axis=1)
    s, count = _newton.solve(op.RECURRENCE, first, xs, weights, pos)
    assert compare.error(s, wanted) < 1e-13
    assert 2 <= int(count) <= 12


def test_a_linear_recurrence_is_one_scan(x64):
    _, xs, weights, first, _, pos = case("sru")
    weights = (0 * weights[0], weights[1])
    assert int(_newton.solve(sru.RECURRENCE, first, xs, weights, pos)[1]) == 2  # the second iteration confirms


def stiff(time: int = 140):
    """An LSTM with large recurrent weights: chaotic, so that it needs about as many iterations as tokens."""
    rng = np.random.default_rng(0)
    u_BTHPK = rng.normal(size=(2, time, 1, 4, 4)).astype(np.float32)
    u_BTHPK[1] = 0
    return u_BTHPK, {"w_HKPJ": 30 * rng.normal(size=(1, 4, 4, 4)).astype(np.float32), "b_HPK": np.zeros((1, 4, 4), np.float32)}


def test_what_does_not_converge_is_refused():
    """Outside jit by a UserError, inside jit by NaN in these rows; there is no fallback to another method."""
    u, weights = stiff()
    with pytest.raises(UserError, match="did not converge in 100 Newton iterations"):
        lstm.parallel(u, **weights)

    def loss(u):
        y, state = lstm.parallel(u, **weights)
        return jnp.nansum(y), (y, state)

    gradient, (y, state) = jax.jit(jax.grad(loss, has_aux=True))(u)
    assert np.isnan(y[0]).all() and np.isnan(state.h_BHK[0]).all()
    assert not np.isnan(y[1]).any()
    assert np.isnan(gradient[0]).any()


def test_a_while_counts_its_declared_bound():
    def bounded(x, limit=7.0):
        return time.while_at_most(7, lambda x: x < limit, lambda x: x * 2, x)

    assert longest_loop(bounded, 1.0) == 7
    assert longest_loop(lambda x: jax.lax.map(jax.jit(bounded), x), jnp.ones(5)) == 7
    assert longest_loop(lambda x: jax.lax.scan(lambda c, y: (c + bounded(y)[0], None), 0.0, x), jnp.ones(5)) == 35

    def nested(x):
        return time.while_at_most(7, lambda x: x < 9, lambda x: jax.lax.while_loop(lambda x: x < 3, lambda x: x * 2, x), x)

    assert longest_loop(nested, 1.0) == float("inf")
    assert [int(bounded(1.0, limit)[1]) for limit in (0.5, 5.0, 1e9)] == [0, 3, 7] and bounded(1.0, 1e9)[0] == 128
    assert longest_loop(lambda x: jax.lax.scan(lambda c, y: (c + y, None), 0.0, x), jnp.ones(5)) == 5
    assert longest_loop(lambda x: jax.lax.scan(lambda c, y: (c * y, y * c), x[0], x), jnp.ones((5, 3))) == 5
    assert longest_loop(lambda x: jax.lax.map(lambda y: y + 1, x), jnp.ones(5)) == 1  # no carry: not sequential
    assert longest_loop(lambda x: jax.lax.while_loop(lambda c: c < 3, lambda c: c * 2, x), 1.0) == float("inf")
