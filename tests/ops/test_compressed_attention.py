"""Attention to means of blocks, and the choice of blocks, against flash-linear-attention; the choice in parts and with ties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.places import TESTS

from jaxseq.ops import attention, block_sparse_attention, compressed_attention
from jaxseq.testing import compare

FORMS = ("recurrent", "parallel", "chunkwise")
BLOCK, COUNT = 8, 4


@pytest.fixture(scope="module")
def data():
    with np.load(TESTS / "oracles" / "native_sparse_attention.npz") as arrays:
        return {key.replace("/nsa/", "/"): arrays[key] for key in arrays if "/nsa/" in key}


@pytest.mark.parametrize("form", FORMS)
def test_native_sparse_attention_of_flash_linear_attention(data, form):
    """Each branch, and their sum with gates; one key head for 16 query heads."""
    q, k, v = (data[f"input/{name}"] for name in "qkv")
    chunk = {"chunk": 5} if form == "chunkwise" else {}
    index = compressed_attention.select(q, k, COUNT, block=BLOCK, chunk=16)
    branches = {
        "cmp": compressed_attention.FORMS[form](q, k, v, block=BLOCK, **chunk)[0],
        "slc": block_sparse_attention.FORMS[form](q, k, v, index, block=BLOCK, **chunk)[0],
        "swa": attention.FORMS[form](q, k, v, window=int(data["input/window_size"]), **chunk)[0],
    }
    for (_, y), name in zip(branches.items(), ("compression", "selection", "window"), strict=True):
        assert compare.error(y, data[f"output/{name}"]) < 1e-6
    y = sum(data[f"input/g_{name}"][..., None] * y for name, y in branches.items())
    assert compare.error(y, data["output/y"]) < 1e-6


def test_the_choice_is_that_of_flash_linear_attention(data):
    index = np.asarray(compressed_attention.select(data["input/q"], data["input/k"], COUNT, block=BLOCK))
    assert np.array_equal(np.sort(index), np.sort(data["output/block_indices"]))


def test_equal_blocks_are_chosen_in_order():
    """The own block, the first, the one before the own; then the lowest of the others, which have equal keys."""
    q = jax.random.normal(jax.random.key(0), (1, 29, 2, 6))
    index = compressed_attention.select(q, jnp.ones((1, 29, 1, 6)), COUNT, block=4)
    assert index[0, 27, 0].tolist() == [6, 0, 5, 1]
    assert index[0, 28, 0].tolist() == [7, 0, 6, 1]
    assert index[0, 0, 0].tolist() == [0, -1, -1, -1]
    assert index[0, 9, 0].tolist() == [2, 0, 1, -1]


@pytest.mark.parametrize("form, stride", [("recurrent", 2), ("parallel", 2), ("chunkwise", None)])
def test_the_choice_in_parts_is_that_at_once(form, stride, x64):
    """For packed documents, with a cut inside a block and padding at the end of one part; with a stride by a learned map."""
    (q, k, v), maps, _, _ = compressed_attention.example(jax.random.key(0), 2, 40, jnp.float64)
    time, blocks = 40, {"block": 4} | ({"stride": stride, **maps} if stride else {})
    pos = np.stack([np.arange(time), np.concatenate([np.arange(19), np.arange(time - 19)])])
    wanted = compressed_attention.select(q, k, COUNT, pos=pos, chosen=6 if stride else 4, **blocks)

    @jax.jit
    def choose(q, k, v, state, pos):
        index = compressed_attention.select(q, k, COUNT, state=state, pos=pos, chosen=6 if stride else 4, **blocks)
        return index, compressed_attention.FORMS[form](q, k, v, state=state, pos=pos, **blocks)[1]

    state = compressed_attention.init_state(2, time, 2, 6, 5, 4, jnp.float64, stride)
    for start, stop in ((0, 10), (10, 11), (11, 27), (27, 40)):
        part, more = slice(start, stop), 16 - (stop - start)
        xs = (jnp.pad(x[:, part], ((0, 0), (0, more), (0, 0), (0, 0))) for x in (q, k, v))
        index, state = choose(*xs, state, np.pad(pos[:, part], ((0, 0), (0, more)), constant_values=-1))
        assert np.array_equal(index[:, : stop - start], wanted[:, part])
        assert np.all(index[:, stop - start :] == -1)
