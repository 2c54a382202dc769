"""The WKV ops against the naive operators of flash-linear-attention."""


import numpy as np
import pytest
from helpers.places import TESTS

from jaxseq.ops import wkv6, wkv7
from jaxseq.testing import compare


@pytest.fixture(scope="module")
def data():
    with np.load(TESTS / "oracles" / "wkv.npz") as arrays:  # from [B, H, T, K] to [B, T, H, K]
        return {name: np.moveaxis(array, 1, 2) if array.ndim == 4 else array for name, array in arrays.items()}


@pytest.mark.parametrize("form", wkv6.FORMS)
def test_wkv6(data, form):
    xs = (data[f"input/{name}"] for name in ("q", "k", "v", "w6"))
    y, state = wkv6.FORMS[form](*xs, u_HK=data["input/u"])
    assert compare.error(y, data["output/rwkv6"]) < 1e-5
    assert compare.error(np.moveaxis(state.S_BHKV, 1, 2), data["output/rwkv6_state"]) < 1e-5


@pytest.mark.parametrize("form", wkv7.FORMS)
def test_wkv7(data, form):
    """Theirs is the general rule with a = -kk and b = kk a, queries divided by sqrt(K)."""
    q, log_w, k, v, kk, a = (data[f"input/{name}"] for name in ("q", "gk", "k", "v", "kk", "a"))
    y, state = wkv7.FORMS[form](q * np.float32(q.shape[3] ** -0.5), log_w, k, v, -kk, kk * a)
    assert compare.error(y, data["output/rwkv7_dplr"]) < 1e-5
    assert compare.error(np.moveaxis(state.S_BHKV, 1, 2), data["output/rwkv7_state"]) < 1e-5
