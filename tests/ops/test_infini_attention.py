"""Infini-attention: segments without a memory, a memory without `delta`, and costs that do not depend on earlier segments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import infini_attention as oracle

from jaxseq.ops import attention, infini_attention
from jaxseq.testing import compare
from jaxseq.train import flops

FORMS = ("recurrent", "parallel", "chunkwise")
CLOSED, OPEN = jnp.full(4, -1e3), jnp.full(4, 1e3)  # gates


def run(form, xs, **options):
    chunk = {"chunk": 5} if form == "chunkwise" else {}
    return jax.jit(lambda *xs: infini_attention.FORMS[form](*xs, **options, **chunk)[0])(*xs)


@pytest.fixture
def xs(x64):
    return infini_attention.example(jax.random.key(0), 2, 19, jnp.float64).xs


@pytest.mark.parametrize("form", FORMS)
def test_in_one_segment_it_is_attention(form, xs):
    got = run(form, xs, gate_H=CLOSED, segment=19)
    assert compare.error(got, attention.parallel(*xs[:3])[0]) < compare.FLOAT64
    assert not np.any(run(form, xs, gate_H=OPEN, segment=19))  # the memory is empty


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_memory(form, delta, xs):
    options = {"gate_H": jnp.linspace(-2, 2, 4), "segment": 3, "delta": delta}
    assert compare.error(run(form, xs, **options), oracle.loop(*map(np.asarray, xs), **options)) < compare.FLOAT64


def test_what_is_stored_a_second_time_with_delta_changes_nothing(xs):
    """The value that belongs to the key is already there; z counts it again."""
    xs = [jnp.tile(x[:, :1], (1, 3, 1, 1)) for x in xs]
    once, twice = (
        infini_attention.parallel(*(x[:, :time] for x in xs), gate_H=OPEN, segment=1)[1].memory_BGKV for time in (2, 3)
    )
    assert compare.error(twice[..., :-1], once[..., :-1]) < compare.FLOAT64
    assert compare.error(twice[..., -1], 2 * once[..., -1]) < compare.FLOAT64


def test_time_and_memory_are_linear():
    def cost(time):
        shape = lambda heads: jax.ShapeDtypeStruct((1, time, heads, 16), jnp.float32)  # noqa: E731
        xs = shape(4), shape(2), shape(2), shape(4), shape(2)
        gradients = jax.grad(lambda *xs: jnp.sum(infini_attention.chunkwise(*xs, gate_H=jnp.zeros(4), segment=32)[0]), (0, 1, 2))
        return flops.count(gradients, *xs), jax.jit(gradients).lower(*xs).compile().memory_analysis().temp_size_in_bytes

    for small, large in zip(cost(256), cost(512), strict=True):
        assert large < 2.1 * small
