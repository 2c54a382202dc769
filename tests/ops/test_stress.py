"""Hard inputs: every op at T = 257 with gradients; slow tests at T = 4096 and in bfloat16."""

import functools

import jax
import jax.numpy as jnp
import pytest
from helpers.laws import cells, of_op

from jaxseq import registry
from jaxseq.ops._example import STRESSES
from jaxseq.testing import stress

NAMES = registry.names("ops")
WIDE = {"long": (stress.LONG, jnp.float32, 1), "bfloat16": (stress.TIME, jnp.bfloat16, 2)}


@functools.cache
def inputs(name: str, time: int, dtype, batch: int):
    return stress.cases(registry.load("ops", name), time, dtype, batch)


def hold(record_property, name: str, column: str, cases: dict, gradients: bool):
    """Check the cases on every subject of an op; the table shows the largest error."""
    error = float("nan")
    try:
        with jax.enable_x64(True), jax.default_matmul_precision("highest"):
            error = max(stress.hold(subject, *case, gradients) for subject in of_op(name) for case in cases.items())
    finally:
        record_property("stress", (name, column, error))


@pytest.mark.cell
@pytest.mark.parametrize("name, case", cells("ops", NAMES, STRESSES))
def test_stress(name, case, record_property):
    found = inputs(name, stress.TIME, jnp.float32, stress.BATCH)
    assert set(found) == set(STRESSES)
    hold(record_property, name, case, {case: found[case]}, gradients=True)


@pytest.mark.slow
@pytest.mark.cell
@pytest.mark.parametrize("name, column", cells("ops", NAMES, WIDE))
def test_all_cases(name, column, record_property):
    hold(record_property, name, column, inputs(name, *WIDE[column]), gradients=False)
