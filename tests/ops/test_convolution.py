"""The causal convolution by divide and conquer: equal to a plain one for each document, and bitwise causal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.ops import _convolution
from jaxseq.testing import compare

convolve = jax.jit(_convolution.causal)


def plain(u_BTD, k_WD, seg_BT):
    """sum over s <= t of the same document of k_{t-s} u_s, as one matrix per channel."""
    time, taps = u_BTD.shape[1], k_WD.shape[0]
    lag_TS = np.arange(time)[:, None] - np.arange(time)
    filter_TSD = jnp.where(((lag_TS >= 0) & (lag_TS < taps))[..., None], k_WD[jnp.clip(lag_TS, 0, taps - 1)], 0)
    return jnp.einsum("bts,tsd,bsd->btd", 1.0 * (seg_BT[:, :, None] == seg_BT[:, None]), filter_TSD, u_BTD)


@pytest.mark.parametrize("time, taps", [(7, 30), (37, 1), (150, 9), (150, 200)])
def test_documents_of_rows(x64, time, taps):
    """Values and gradients for all sizes of parts, filters shorter and longer than the row, document borders anywhere."""
    rng = np.random.default_rng(time + taps)
    u_BTD, k_WD, weight_BTD = rng.normal(size=(3, time, 3)), rng.normal(size=(taps, 3)), rng.normal(size=(3, time, 3))
    seg_BT = np.stack([np.zeros(time, np.int32), np.arange(time) // 20, np.cumsum(rng.random(time) < 0.03)])
    assert compare.error(convolve(u_BTD, k_WD, seg_BT), plain(u_BTD, k_WD, seg_BT)) < compare.FLOAT64

    def gradients(way):
        return jax.jit(jax.grad(lambda u, k: jnp.sum(weight_BTD * way(u, k, seg_BT)), argnums=(0, 1)))(u_BTD, k_WD)

    assert compare.worst(gradients(_convolution.causal), gradients(plain))[0] < compare.FLOAT64


def test_later_tokens_change_no_bit_of_earlier_outputs():
    rng = np.random.default_rng(0)
    u_BTD, k_WD = rng.normal(size=(1, 150, 2)).astype(np.float32), rng.normal(size=(150, 2)).astype(np.float32)
    seg_BT = np.zeros((1, 150), np.int32)
    y_BTD = convolve(u_BTD, k_WD, seg_BT)
    for t in (1, 17, 63, 64, 100, 149):
        changed_BTD = u_BTD.copy()
        changed_BTD[:, t:] = 1e6
        np.testing.assert_array_equal(convolve(changed_BTD, k_WD, seg_BT)[:, :t], y_BTD[:, :t])
