"""The causal UniRepLKNet mixer: its branches are one kernel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxseq.call import Call
from jaxseq.compat import enable_x64
from jaxseq.errors import UserError
from jaxseq.mixers import _reparam, unireplk
from jaxseq.ops import short_conv
from jaxseq.testing import compare

POS = jnp.tile(jnp.arange(24, dtype=jnp.int32), (2, 1))


@functools.cache
def start(merged=False):
    """(apply, shapes of the parameters)"""
    mixer = unireplk.UniRepLK(width=8, dtype=jnp.float64, merged=merged)
    run = lambda params, x_BTD: mixer.apply({"params": params}, x_BTD, None, Call.of(POS, "parallel"))[0]  # noqa: E731
    init = lambda key, x_BTD: mixer.init(key, x_BTD, None, Call.of(POS, "parallel"))["params"]  # noqa: E731
    return jax.jit(run), nn.meta.unbox(jax.eval_shape(init, jax.random.key(0), inputs()))


def inputs():
    return np.random.default_rng(1).normal(size=(2, 24, 8))


def test_merged_is_the_branches(x64):
    (branches, shapes), (merged, like) = start(), start(merged=True)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), shapes)
    got = jax.jit(unireplk.merge)(params)
    assert compare.spec(got) == compare.spec(like)
    assert compare.error(merged(got, inputs()), branches(params, inputs())) < 1e-12
    stacked = jax.vmap(unireplk.merge)(jax.tree.map(lambda x: jnp.stack([2 * x, x]), params))
    assert compare.worst(jax.tree.map(lambda x: x[1], stacked), got)[0] < 1e-12


@pytest.mark.parametrize("kernel", _reparam.BRANCHES)
def test_one_kernel_is_the_sum_of_dilated_convolutions(kernel):
    """Each branch is a loop over its taps; the merged kernel is applied by the mixer's op."""
    rng = np.random.default_rng(0)
    x_BTD, own = rng.normal(size=(2, 24, 3)), ((kernel, 1), *_reparam.branches(kernel))
    weights = [rng.normal(size=(taps, 3)) for taps, _ in own]
    wanted = np.zeros(x_BTD.shape)
    for w_WD, (_, dilation) in zip(weights, own, strict=True):
        for j, tap_D in enumerate(w_WD):
            past = j * dilation
            wanted[:, past:] += tap_D * x_BTD[:, : x_BTD.shape[1] - past]
    with enable_x64(True):
        w_WD = sum(_reparam.spread(jnp.asarray(w), r, kernel, 1) for w, (_, r) in zip(weights, own, strict=True))
        y_BTD, _ = jax.jit(lambda x: short_conv.parallel(x, w_WD=w_WD))(x_BTD)
    assert compare.error(y_BTD, wanted) < 1e-12


def test_a_kernel_without_branches():
    with pytest.raises(UserError, match="17, 15"):
        _reparam.branches(8)
