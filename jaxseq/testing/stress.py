"""The law of hard inputs: no form may lose more than the recurrent one does, on what real data and trained weights bring.

An op's `stress(key, batch, time, dtype)` gives the cases by name (`jaxseq.ops._example.STRESSES`): decays of exactly 1, near 1,
near e^-50 and all mixed, one token repeated over all blocks, and inputs or weights far from their initial values.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.ops._example import Example, outliers, repeated
from jaxseq.testing import compare
from jaxseq.testing.check import Check
from jaxseq.testing.subjects import OpSubject, canonical_by_class, join_floats, quick, split_floats

TIME, LONG = 257, 4096  # every chunk of 64 tokens is crossed, and a rest of one token is left; every chunk of 1024 is
OWN_ERROR, FLOOR = 20.0, 1e-6  # of the recurrent form's own error in float32, and beside it
BATCH = 2


def cases(op, time: int, dtype, batch: int = BATCH) -> dict[str, Example]:
    """The op's cases on the host; an op without `stress` is put to those that can be made from its example."""

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
    """Rows that go on; in all but the first a document begins after some blocks."""
    pos_BT = np.tile(np.arange(1, time + 1, dtype=np.int32), (batch, 1))
    pos_BT[1:, time // 3 :] = np.arange(time - time // 3)
    return pos_BT


@functools.cache
def _compiled(function, options: tuple, canonical, gradients: bool):
    """A form's (y, canonical state), and its gradients by all floating arguments; one for all ops that share the form."""

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
    options = {k: v for k, v in subject.options_of(function, case.options).items() if k != "chunk"}  # chunks as in use
    canonical = op.canonical if hasattr(op, "canonical") else canonical_by_class
    return jax.device_get(_compiled(function, tuple(options.items()), canonical, gradients)(*arguments, pos_BT))


def measure(subject: OpSubject, case: Example, gradients: bool = True) -> dict[str, list[tuple[float, str]]]:
    """Errors of each form against the recurrent one in float64, of the values and of the gradients."""
    arguments = case.xs, case.weights, None if subject.defaults else case.state
    pos_BT = positions(case.xs[0].shape[1], case.xs[0].shape[0])
    exact = _run(subject, "recurrent", case, compare.cast(arguments, np.float64), pos_BT, gradients)

    def errors(form):
        found = compare.cast(_run(subject, form, case, arguments, pos_BT, gradients), np.float64)
        return [compare.worst(got, wanted) for got, wanted in zip(found, exact, strict=True)]

    return {form: errors(form) for form in dict.fromkeys(("recurrent", *subject.forms))}


def hold(subject: OpSubject, name: str, case: Example, gradients: bool = True) -> float:
    """Put one case to all forms; the largest error, of values or gradients, that passed."""
    check, time, dtype = Check(subject, "stress"), case.xs[0].shape[1], case.xs[0].dtype
    found = measure(subject, case, gradients)
    for kind, own in enumerate(found["recurrent"]):
        if not np.isfinite(own[0]):
            check.fail("recurrent", time, f"{name}: differs from float64 by {own[0]} in {own[1]}: the case says nothing", dtype)
        what = f"{name}: {('values', 'gradients')[kind]} and float64's"
        allowed = OWN_ERROR * own[0] + FLOOR if dtype == np.float32 else compare.OWN_ERROR * max(own[0], compare.epsilon(dtype))
        for form, errors in found.items():
            check.close(errors[kind], form, time, what, allowed, dtype)
    return check.largest


def stress(subject: OpSubject) -> float:
    """On hard inputs every form's error against float64 is at most OWN_ERROR times the recurrent form's own, plus FLOOR.

    In float32, with gradients, over several blocks of every form: T = TIME. The cases are those of the op's `stress`.
    """
    return max(hold(subject, name, case) for name, case in cases(subject.op, TIME, jnp.float32).items())
