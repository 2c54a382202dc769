"""Hard inputs for whole models: at T = 257 with gradients; slow tests at T = 4096 and in bfloat16. The default run tests one
model for each kind of state; the others are slow tests."""

import jax.numpy as jnp
import pytest

import jaxseq
from jaxseq.ops import retention
from jaxseq.testing import LawBroken, stress, stress_models

KINDS = ("transformer", "mamba", "rwkv7", "hyena", "lstm")
# {column: (T, dtype, rows, gradients)}
COLUMNS = {"hard": (stress.TIME, "float32", 2, True), "long": (stress.LONG, "float32", 1, False),
           "bfloat16": (stress.TIME, "bfloat16", 2, False)}  # fmt: skip


def cells():
    for name in jaxseq.names():
        for column in COLUMNS:
            marks = [pytest.mark.xdist_group(f"stress/{name}")]
            if column != "hard" or name not in KINDS:
                marks.append(pytest.mark.slow)
            for case in stress_models.CASES:
                yield pytest.param(name, column, case, marks=marks, id=f"{name}-{column}-{case}")


def test_there_is_a_model_of_each_kind():
    assert set(KINDS) <= set(jaxseq.names())


@pytest.mark.cell
@pytest.mark.parametrize("name, column, case", cells())
def test_stress(name, column, case, record_property):
    time, dtype, batch, gradients = COLUMNS[column]
    error = float("nan")
    try:
        error = stress_models.hold(stress_models.subject(name), case, time, dtype, batch, gradients)
    finally:
        record_property("stress of models", (name, f"{column} {case}", error))


def test_a_form_that_is_a_little_wrong_is_found(monkeypatch):
    right = retention.FORMS["chunkwise"]

    def wrong(*xs, **options):
        y_BTHV, state = right(*xs, **options)
        return y_BTHV * (1 + 1e-4 * jnp.cos(jnp.arange(y_BTHV.shape[-1]))).astype(y_BTHV.dtype), state

    monkeypatch.setitem(retention.FORMS, "chunkwise", wrong)
    subject = stress_models.subject.__wrapped__("retnet")  # a separate subject, which no other test uses
    with pytest.raises(LawBroken, match="retnet breaks the law 'stress'.*chunkwise.*far: values"):
        stress_models.hold(subject, "far", stress.TIME, gradients=False)
