"""The law of hard inputs, as of real data and trained weights: no form is much less accurate than the recurrent one.

An op's `stress(key, batch, time, dtype)` returns the cases by name (`jaxseq.ops._example.STRESSES`): decays of exactly 1, near 1,
near e^-50 and a mix of these, one token repeated over all blocks, and inputs or weights far from their initial values.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxseq.ops._example import Example, outliers, repeated
from jaxseq.testing import compare
from jaxseq.testing.check import Check
from jaxseq.testing.subjects import OpSubject, canonical_by_class, join_floats, quick, split_floats

TIME, LONG = 257, 4096  # several chunks of 64 tokens and one token more; several chunks of 1024
OWN_ERROR, FLOOR = 20.0, 1e-6  # tolerance: OWN_ERROR * (recurrent form's error in float32) + FLOOR
BATCH = 2


def cases(op: Any, time: int, dtype: DTypeLike, batch: int = BATCH) -> dict[str, Example]:
    """The cases of the op, on the host; for an op without `stress`, those that can be made from its example."""

    options = {}

    def make(key):
        if hasattr(op, "stress"):
            found = op.stress(key, batch, time, dtype)
        else:
            base = op.example(key, batch, time, dtype)
            large = base._replace(xs=tuple(outliers(key, x) for x in base.xs))
            found = {"repeated": base._replace(xs=repeated(*base.xs)), "large": large}
        options.update({name: case.options for name, case in found.items()})
        return {name: (case.xs, case.weights, case.state) for name, case in found.items()}

    found = jax.device_get(jax.jit(make, compiler_options=quick())(jax.random.key(1, impl="unsafe_rbg")))
    return {name: Example(xs, weights, options[name], state) for name, (xs, weights, state) in found.items()}


def positions(time: int, batch: int) -> np.ndarray:
    """pos [batch, time]: all rows continue a document; in all but the first, another document begins after T // 3 tokens."""
    pos_BT = np.tile(np.arange(1, time + 1, dtype=np.int32), (batch, 1))
    pos_BT[1:, time // 3 :] = np.arange(time - time // 3)
    return pos_BT


@functools.cache
def _compiled(function, options: tuple, canonical, gradients: bool):
    """Compiled function for (y, canonical state) of a form and its gradients by all floating arguments; cached per form."""

    def run(xs, weights, state, pos):
        floats, rest, structure = split_floats((xs, weights, state))

        def results(floats):
            xs, weights, state = join_floats(floats, rest, structure)
            y, state = function(*xs, state=state, pos=pos, **weights, **dict(options))
            found = y, canonical(state)
            leaves = [x for x in jax.tree.leaves(found) if compare.is_float(x)]
            return sum(jnp.vdot(x, jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)) for x in leaves), found

        if not gradients:
            return results(floats)[1], []
        slopes, found = jax.grad(results, has_aux=True)(floats)
        return found, slopes

    return jax.jit(run, compiler_options=quick())


def _run(subject: OpSubject, form: str, case: Example, arguments, pos_BT, gradients: bool):
    function, op = subject.op.FORMS[form], subject.op
    options = {k: v for k, v in subject.options_of(function, case.options).items() if k != "chunk"}  # default chunk sizes
    canonical = op.canonical if hasattr(op, "canonical") else canonical_by_class
    return jax.device_get(_compiled(function, tuple(options.items()), canonical, gradients)(*arguments, pos_BT))


def measure(subject: OpSubject, case: Example, gradients: bool = True) -> dict[str, list[tuple[float, str]]]:
    """Errors of values and gradients of each form, against the recurrent form in float64."""
    arguments = case.xs, case.weights, None if subject.defaults else case.state
    pos_BT = positions(case.xs[0].shape[1], case.xs[0].shape[0])
    exact = _run(subject, "recurrent", case, compare.cast(arguments, np.float64), pos_BT, gradients)

    def errors(form):
        found = compare.cast(_run(subject, form, case, arguments, pos_BT, gradients), np.float64)
        if hasattr(subject.op, "RECURRENCE") and form != "recurrent" and not gradients:
            found = _without_refused(found, exact)
        return [compare.worst(got, wanted) for got, wanted in zip(found, exact, strict=True)]

    return {form: errors(form) for form in dict.fromkeys(("recurrent", *subject.forms))}


def _without_refused(found, exact):
    """`found` with the exact values in rows for which a solver did not converge: there, y and the state are NaN."""
    (y, state), slopes = found
    refused_B = np.all(np.isnan(y), axis=tuple(range(1, y.ndim)))
    instead = lambda x, own: np.where(refused_B.reshape(-1, *[1] * (x.ndim - 1)) & np.isnan(x), own, x)  # noqa: E731
    return jax.tree.map(instead, (y, state), exact[0]), slopes


def hold(subject: OpSubject, name: str, case: Example, gradients: bool = True) -> float:
    """Check one case in all forms. Returns the largest error of values or gradients; raises LawBroken."""
    check, time, dtype = Check(subject, "stress"), case.xs[0].shape[1], case.xs[0].dtype
    found = measure(subject, case, gradients)
    for kind, own in enumerate(found["recurrent"]):
        if not np.isfinite(own[0]):
            check.fail("recurrent", time, f"{name}: differs from float64 by {own[0]} in {own[1]}: case too hard", dtype)
        what = f"{name}: {('values', 'gradients')[kind]} and float64's"
        allowed = OWN_ERROR * own[0] + FLOOR if dtype == np.float32 else compare.OWN_ERROR * max(own[0], compare.epsilon(dtype))
        for form, errors in found.items():
            check.close(errors[kind], form, time, what, allowed, dtype)
    return check.largest


def stress(subject: OpSubject) -> float:
    """On hard inputs the error of each form against float64 is at most OWN_ERROR times that of the recurrent form, plus FLOOR.

    In float32, with gradients, at T = TIME, which spans several blocks of every form. The cases are those of `stress`.
    """
    return max(hold(subject, name, case) for name, case in cases(subject.op, TIME, jnp.float32).items())
