"""The two ways through a causal convolution, one FFT and divide and conquer, are the same function."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.ops import _convolution
from jaxseq.testing import compare


def both(u_BTD, k_JD, seg_BT):
    """Outputs and gradients of each way."""

    def run(way, u_BTD, k_JD):
        y_BTD = way(u_BTD, k_JD, seg_BT)
        return jnp.sum(jnp.sin(y_BTD)), y_BTD

    value = jax.jit(jax.value_and_grad(run, argnums=(1, 2), has_aux=True), static_argnums=0)
    return value(_convolution._whole, u_BTD, k_JD), value(_convolution.causal, u_BTD, k_JD)


def test_rows_of_one_document(x64):
    rng = np.random.default_rng(0)
    u_BTD, k_JD = rng.normal(size=(2, 37, 3)), rng.normal(size=(30, 3))
    whole, chosen = both(u_BTD, k_JD, np.zeros((2, 37), np.int32))
    assert compare.worst(chosen, whole)[0] < compare.FLOAT64
    divided = _convolution._divided(u_BTD, k_JD, np.zeros((2, 37), np.int32))
    assert compare.error(divided, whole[0][1]) < compare.FLOAT64
    plain_TD = np.stack([np.convolve(u_BTD[1, :, d], k_JD[:, d])[:37] for d in range(3)], axis=1)
    assert compare.error(whole[0][1][1], plain_TD) < compare.FLOAT64


def test_a_border_in_one_row(x64):
    """Rows with borders come out as their documents alone, gradients too."""
    rng = np.random.default_rng(1)
    u_BTD, k_JD = rng.normal(size=(2, 37, 3)), rng.normal(size=(60, 3))
    seg_BT = np.stack([np.zeros(37, np.int32), np.arange(37) // 20])
    _, ((_, y_BTD), (u_grad, _)) = both(u_BTD, k_JD, seg_BT)
    for row, part in ((0, slice(0, 37)), (1, slice(0, 20)), (1, slice(20, 37))):
        own = u_BTD[row : row + 1, part]
        ((_, y), (grad, _)), _ = both(own, k_JD, np.zeros(own.shape[:2], np.int32))
        assert compare.error(y_BTD[row, part], y[0]) < compare.FLOAT64
        assert compare.error(u_grad[row, part], grad[0]) < compare.FLOAT64
