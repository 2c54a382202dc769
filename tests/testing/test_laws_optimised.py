"""A subject of each kind, compiled with the usual options: the other tests use few optimisations."""

import functools

import jax
import numpy as np
import pytest
from helpers.compiler import users
from jax.experimental.pallas import tpu as pltpu

import jaxseq
from jaxseq import kernels, registry, testing
from jaxseq.ops import attention
from jaxseq.testing import compare


def op():
    return testing.subjects(registry.load("ops", "retention"))[0]


def mixer():
    return testing.subjects(registry.load_class("mixers", "retention")(width=16, layers=2))[0]


def model():
    config = jaxseq.config("minlstm", **{"model.stack": "2*(minlstm)", "model.width": 16, "model.vocab": 11})
    return testing.subjects(jaxseq.build(config))[0]


@pytest.mark.parametrize("make", [op, mixer, model])
def test_gradients_of_all_forms(make):
    subject = make()
    subject.compiler_options = users()
    testing.check_law(subject, "gradient")


def test_gradients_of_a_kernel():
    kernel = functools.partial(kernels.forms("attention", "tpu")["pallas"], block_q=16, block_k=16)
    xs = np.random.default_rng(0).normal(size=(3, 1, 20, 1, 8)).astype(np.float32)
    pos = np.arange(20, dtype=np.int32)[None]

    def gradients(form):
        loss = lambda *xs: (form(*xs, pos=pos)[0] ** 2).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)), compiler_options=users())(*xs)

    with pltpu.force_tpu_interpret_mode():
        got = gradients(kernel)
    assert compare.worst(got, gradients(attention.recurrent))[0] < 3e-6
