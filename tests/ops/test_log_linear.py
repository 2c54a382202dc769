"""Log-linear attention against flash-linear-attention's naive operator, and what it becomes with equal factors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.places import TESTS

from jaxseq.ops import log_linear, retention
from jaxseq.testing import compare


@pytest.mark.parametrize("form", log_linear.FORMS)
def test_flash_linear_attention(form):
    with np.load(TESTS / "oracles" / "log_linear.npz") as data:
        xs, wanted = [data[name] for name in ("q", "k", "v", "g", "level_scales")], data["y"]
    options = {"chunk": 5} if form == "chunkwise" else {}
    y, state = log_linear.FORMS[form](*xs, **options)
    assert compare.error(y, wanted) < 1e-6
    assert (state.count_B == 16).all() and not state.S_BPHKV[:, :3].any()


@pytest.mark.parametrize("form", log_linear.FORMS)
def test_equal_factors_are_retention(form, x64):
    """Also where the last level holds more tokens than in a Fenwick tree: 27 tokens, 3 levels."""
    *qkv, log_a_BTH, _ = log_linear.example(jax.random.key(0), 2, 27, jnp.float64).xs
    wanted, after = retention.FORMS[form](*qkv, log_a_BTH)
    y, state = log_linear.FORMS[form](*qkv, log_a_BTH, jnp.ones((2, 27, 4, 3)))
    assert compare.error(y, wanted) < compare.FLOAT64
    assert compare.error(state.S_BPHKV.sum(axis=1), after.S_BHKV) < compare.FLOAT64


def test_a_part_has_as_many_tokens_as_its_bit():
    """Keys and values of ones without decay: a part's state counts its tokens."""
    ones = jnp.ones((1, 27, 1, 1))
    for form in log_linear.FORMS.values():
        state = form(ones, ones, ones, jnp.zeros((1, 27, 1)), jnp.ones((1, 27, 1, 8)))[1]
        np.testing.assert_array_equal(state.S_BPHKV[0, :, 0, 0, 0], [1, 2, 0, 8, 16, 0, 0])
