"""Laws about numbers: gradients, dtypes, and the spec of the state."""

import jax
import numpy as np

from jaxseq.ops._time import PAD
from jaxseq.testing import compare
from jaxseq.testing.check import Check, garbage, positions, run
from jaxseq.testing.subjects import BATCH, PIECE, Subject, join_floats, split_floats

STEP = 3e-7  # of the central difference, whose error is third derivative x STEP^2 + rounding / STEP


def gradient(subject: Subject) -> float:
    """Gradients with respect to inputs, weights and state equal those of the recurrent form, which match a central difference.

    Values at padding, NaN included, do not affect any gradient, and the gradient at padding is zero.
    """
    check, case, pos = Check(subject, "gradient"), subject.case(np.float64), positions(subject, PIECE)
    rng, xs = np.random.default_rng(0), case.part(0, PIECE)
    y, state = run(subject, "recurrent", xs, case.state, pos)
    results, _, _ = split_floats((y, jax.device_get(subject.canonical(state))))
    cotangents = [rng.normal(size=np.shape(x)) for x in results]

    wanted = subject.gradients("recurrent", xs, case.weights, case.state, pos, cotangents)[1]
    floats, rest, structure = split_floats((xs, case.weights, case.state))
    direction = [rng.normal(size=np.shape(x)) for x in floats]

    def value(step):
        moved = [x + step * d for x, d in zip(floats, direction, strict=True)]
        return subject.gradients("recurrent", *join_floats(moved, rest, structure), pos, cotangents)[0]

    slope = sum(float(np.vdot(g, d)) for g, d in zip(wanted, direction, strict=True))
    found = compare.error(slope, (value(STEP) - value(-STEP)) / (2 * STEP)), "a random direction"
    check.close(found, "recurrent", PIECE, "gradient and central difference", allowed=compare.FINITE_DIFFERENCE)

    check.largest = 0.0  # report only the agreement of the forms
    for form in subject.forms:
        for inputs in (xs, tuple(garbage(x, pos) for x in xs)):
            got = subject.gradients(form, inputs, case.weights, case.state, pos, cotangents)[1]
            check.close(compare.worst(got, wanted), form, PIECE, "gradients")
            for g in got[: len(split_floats(xs)[0])]:
                check.zero(np.asarray(g)[pos == PAD], form, PIECE, "gradients under PAD and zero")
    return check.largest


def spec(subject: Subject) -> float:
    """The state has the same structure, shapes and dtypes before and after a call, in every dtype.

    In float64 states are float64; otherwise they accumulate in float32 or store inputs in the inputs' dtype.
    """
    check = Check(subject, "spec")
    for dtype in (np.float64, *compare.LOW_DTYPES.values()):
        case = subject.case(dtype)
        for form in subject.forms:
            for time in (1, PIECE)[dtype != np.float64 :]:
                y, state = subject.shapes(form, dtype, case.part(0, time), positions(subject, time))
                check.same(compare.spec(state), compare.spec(case.state), form, time, "the state's spec", dtype)
                check.same(y.shape[:2], (BATCH, time), form, time, "y's shape", dtype)
                check.same(np.dtype(y.dtype), subject.output_dtype(dtype), form, time, "y's dtype", dtype)
        for leaf in filter(compare.is_float, jax.tree.leaves(case.state)):
            if leaf.dtype not in (np.promote_types(dtype, np.float32), np.dtype(dtype)):
                check.fail("recurrent", subject.whole, f"a state leaf is {leaf.dtype}", dtype)
    return check.largest


def dtype(subject: Subject) -> float:
    """In float32 and bfloat16 the error of each form against float64 is at most OWN_ERROR times that of the recurrent form.

    A state leaf of an op in bfloat16 must be a copy of inputs, because sums are kept in float32. If rounding flips a router's
    choice of experts, only the tokens before it are compared.
    """
    check, pos = Check(subject, "dtype"), positions(subject, subject.whole)
    for low in compare.LOW_DTYPES.values():
        case = subject.case(low)
        arguments = compare.cast((case.xs, case.weights, case.state), np.float64)
        exact = subject.run("recurrent", np.float64, *arguments, pos)
        results = {form: run(subject, form, case.xs, case.state, pos, low) for form in subject.forms}
        limit = subject.roundings * compare.epsilon(low)
        if any(subject.compare_values(got, exact)[0] > limit for got in results.values()):
            results = _up_to_other_choices(check, subject, low, arguments, exact, results, pos)
        rounding = subject.compare_values(results["recurrent"], exact)
        check.close(rounding, "recurrent", subject.whole, "values and float64's", limit, low)
        allowed = compare.OWN_ERROR * max(rounding[0], compare.epsilon(low))
        for form, got in results.items():
            check.same(np.dtype(got[0].dtype), subject.output_dtype(low), form, subject.whole, "y's dtype", low)
            check.close(subject.compare_values(got, exact), form, subject.whole, "values and float64's", allowed, low)
            if subject.exact_caches:
                caches = [compare.is_float(x) and x.dtype.itemsize < 4 for x in jax.tree.leaves(got[1])]
                for leaf, copy, cache in zip(jax.tree.leaves(got[1]), jax.tree.leaves(exact[1]), caches, strict=True):
                    if cache:
                        check.close(compare.worst(leaf, copy), form, subject.whole, "cached inputs", 0.0, low)
    return check.largest


def _up_to_other_choices(check: Check, subject: Subject, low, arguments, exact, results: dict, pos) -> dict:
    """`results`, with `exact` in each row from the first token whose choice differs from float64, and in its final state.

    Fails if fewer than half of the tokens remain.
    """
    wanted, case = subject.choices("recurrent", np.float64, *arguments, pos), subject.case(low)
    if not wanted:
        return results
    mended = {}
    for form, (y, state) in results.items():
        got = subject.choices(form, low, case.xs, case.weights, case.state, pos)
        same = [np.all(np.sort(a) == np.sort(b), axis=(*range(a.ndim - 3), -1)) for a, b in zip(got, wanted, strict=True)]
        same_BT = np.logical_and.accumulate(np.all(same, axis=0), axis=1)
        if not same_BT.mean() >= 0.5:
            check.fail(form, subject.whole, f"only {same_BT.mean():.0%} of the tokens come before another choice", low)
        y = np.where(same_BT.reshape(*same_BT.shape, *(1,) * (y.ndim - 2)), y, exact[0].astype(y.dtype))
        mended[form] = y, subject.replace_rows(state, exact[1], ~same_BT[:, -1])
    return mended
