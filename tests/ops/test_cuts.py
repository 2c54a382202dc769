"""What an op declares to pass between segments (`CUT`) is true for its state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq import registry
from jaxseq.testing import compare

CUTS = ("affine", "halo", "overlap", "ring", "serial")
TIME = 48  # more than the slots and taps of every example
SUMMARY = ("summary", "combine", "apply")


def after(name: str, *mixes: float):
    """The states after TIME tokens, for the states a + mix * (b - a) before them, of two random states a and b, in float64."""
    op = registry.load("ops", name)
    case, other = (op.example(jax.random.key(seed), 2, TIME, jnp.float64) for seed in (0, 1))

    def run(mix):
        blend = lambda a, b: a + mix * (b - a) if compare.is_float(a) else a  # noqa: E731
        state = jax.tree.map(blend, case.state, other.state)
        return op.FORMS["recurrent"](*case.xs, state=state, **case.weights, **case.options)[1]

    return [jax.device_get(state) for state in jax.jit(lambda mixes: [run(mix) for mix in mixes])(list(mixes))]


@pytest.mark.parametrize("name", registry.names("ops"))
def test_the_state_passes_a_cut_as_the_op_says(name, x64):
    op = registry.load("ops", name)
    assert op.CUT in CUTS
    first, second, between = after(name, 0.0, 1.0, 0.3)
    forgets = compare.worst(first, second)[0] == 0
    line = jax.tree.map(lambda a, b: a + 0.3 * (b - a) if compare.is_float(np.asarray(a)) else a, first, second)
    affine = compare.worst(between, line)[0] < compare.FLOAT64
    assert forgets == (op.CUT in ("halo", "overlap", "ring"))
    if op.CUT == "affine":
        assert affine or all(hasattr(op, part) for part in SUMMARY)  # the state of some is a logarithm
    if op.CUT == "serial":
        assert not affine and not any(hasattr(op, part) for part in SUMMARY)
