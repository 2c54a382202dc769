"""Attention to chosen blocks against flash-linear-attention and against attention; its operations and its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.places import TESTS

from jaxseq.ops import attention, block_sparse_attention
from jaxseq.testing import compare
from jaxseq.train import flops

FORMS = ("recurrent", "parallel", "chunkwise")
BLOCK, CHOSEN = 8, 4


def run(form, *xs, **options):
    chunk = {"chunk": 5} if form == "chunkwise" else {}
    return jax.jit(lambda *xs: block_sparse_attention.FORMS[form](*xs, **options, **chunk)[0])(*xs)


@pytest.mark.parametrize("form", FORMS)
def test_flash_linear_attention(form):
    with np.load(TESTS / "oracles" / "native_sparse_attention.npz") as arrays:
        xs = [arrays[f"input/nsa_selection/{name}"] for name in ("q", "k", "v", "block_indices")]
        wanted = arrays["output/nsa_selection/y"]
    assert compare.error(run(form, *xs, block=4), wanted) < 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_with_all_blocks_it_is_attention(form, x64):
    """Blocks named twice, unknown blocks and blocks after the query's change nothing."""
    q, k, v, _ = block_sparse_attention.example(jax.random.key(0), 2, 9, jnp.float64).xs
    index = jnp.broadcast_to(jnp.array([1, 0, 2, 2, -1, -7, 3, 1 << 30]), (2, 9, 2, 8))
    assert compare.error(run(form, q, k, v, index, block=4), attention.parallel(q, k, v)[0]) < compare.FLOAT64


def arguments(time: int):
    """Shapes of q, k, v, the indices."""
    q, k = (jax.ShapeDtypeStruct((1, time, heads, 32), jnp.float32) for heads in (4, 2))
    return q, k, k, jax.ShapeDtypeStruct((1, time, 2, CHOSEN), jnp.int32)


def summed(form: str, **options):
    return lambda *xs: jnp.sum(block_sparse_attention.FORMS[form](*xs, block=BLOCK, **options)[0])


@pytest.mark.parametrize("change", [lambda f: f, lambda f: jax.grad(f, (0, 1, 2))], ids=["forward", "gradient"])
def test_operations_are_those_of_the_chosen_keys(change):
    """Each of 1024 queries reads 32 keys, a fraction of 1/32; choosing and writing them costs at most half as much again. The
    backward pass of the chunkwise form computes the scores once more."""
    dense, sparse = (flops.count(change(summed(form)), *arguments(1024)) for form in ("parallel", "chunkwise"))
    assert dense / 32 < sparse < 1.5 * dense / 32


def test_the_memory_of_training_is_linear():
    """Temporaries of the gradients of the chunkwise form: if scores of all pairs were stored, they would quadruple."""

    def temporaries(time):
        gradients = jax.grad(summed("chunkwise"), (0, 1, 2))
        return jax.jit(gradients).lower(*arguments(time)).compile().memory_analysis().temp_size_in_bytes

    small, large = temporaries(512), temporaries(1024)
    assert large < 2.2 * small
