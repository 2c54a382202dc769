"""Vectors in place of tokens: rows of the embedding table give the same result as tokens, bit for bit."""

import jax
import numpy as np
import pytest

import jaxseq
from jaxseq.models import _positions
from jaxseq.testing import compare

SIZES = {
    "retnet": {"model.width": 16, "model.vocab": 32},
    "gpt2": {"model.width": 16, "model.vocab": 32, "model.max_positions": 16},
    "transformer": {"model.width": 16, "model.vocab": 32, "model.embedding_width": 8, "model.scaled_embedding": True},
}
POS = np.array([[0, 1, 2, -1, 0, 1, 2], [4, -1, 5, 6, 7, 8, -1]], np.int32)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("pos", [None, POS], ids=["in order", "documents and padding"])
def test_rows_of_the_table_are_the_tokens(name, pos):
    heads = {} if name == "retnet" else {"model.attention.heads": 2, "model.attention.kv_heads": 2}
    model = jaxseq.build(jaxseq.config(name, **SIZES[name], **heads))
    variables = jax.jit(model.init)(jax.random.key(0), *model.example())
    tokens = np.random.default_rng(0).integers(0, 32, POS.shape).astype(np.int32)
    rows = variables["params"]["embedding"][tokens]
    apply = jax.jit(model.apply, static_argnames="form")
    for form in ("parallel", "recurrent"):
        state = model.init_state(2, 16)
        wanted, got = (apply(variables, inputs, state, pos, form=form) for inputs in (tokens, rows))
        assert compare.worst(got, wanted)[0] == 0
    assert compare.error(apply(variables, rows[:, ::-1], None, pos, form="parallel")[0], wanted[0]) > 1e-3


@pytest.mark.parametrize("width", [6, 7])
@pytest.mark.parametrize("length", [0, 3])
def test_sinusoids_alternate_sines_and_cosines(width, length):
    found = _positions.sinusoids(np.arange(2 * length).reshape(2, length), width, np.float32)
    channel = np.arange(width)
    angle = np.arange(2 * length).reshape(2, length, 1) / 10000.0 ** (2 * (channel // 2) / width)
    assert found.shape == (2, length, width) and found.dtype == np.float32
    np.testing.assert_allclose(found, np.where(channel % 2, np.cos(angle), np.sin(angle)), atol=1e-6)
