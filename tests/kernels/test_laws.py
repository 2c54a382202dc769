"""Every Pallas kernel against the laws of its op, in TPU interpret mode."""

import functools
import types

import jax
import pytest
from helpers.laws import KERNELS as LAWS
from helpers.laws import cells, check
from jax.experimental.pallas import tpu as pltpu

from jaxseq import kernels, registry, testing
from jaxseq.testing.subjects import OpSubject

BLOCKS = {"block_q": 16, "block_k": 16}  # so that T = 33 and the example's state have several blocks
KERNELS = tuple(op for op in registry.names("ops") if kernels.forms(op, "tpu"))


@functools.cache
def subject(name: str) -> OpSubject:
    op = registry.load("ops", name)
    forms = {"recurrent": op.recurrent, "pallas": functools.partial(kernels.forms(name, "tpu")["pallas"], **BLOCKS)}
    others = {part: getattr(op, part) for part in ("example", "canonical") if hasattr(op, part)}
    return OpSubject(types.SimpleNamespace(__name__=f"{name}_pallas", FORMS=forms, **others))


def test_there_is_a_kernel_and_every_law_has_its_place():
    assert "attention" in KERNELS
    others = {"loops", "summary", "example", "stress"}
    assert {law for laws in LAWS.values() for law in laws} | others == set(testing.LAWS["op"])


@pytest.fixture
def float64():
    """In all threads, because interpret mode uses its own."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def hold(record_property, name: str, law: str):
    with pltpu.force_tpu_interpret_mode():
        check(record_property, subject(name), law)


@pytest.mark.cell
@pytest.mark.parametrize("name, law", cells("kernels", KERNELS, LAWS["quick"]))
def test_law(name, law, float64, record_property):
    hold(record_property, name, law)


@pytest.mark.slow
@pytest.mark.cell
@pytest.mark.parametrize("name, law", cells("kernels", KERNELS, LAWS["long"]))
def test_long_law(name, law, float64, record_property):
    hold(record_property, name, law)
