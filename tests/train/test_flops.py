"""The FLOP counter against numbers worked out by hand."""

import inspect

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from jaxseq.testing.loops import longest_loop
from jaxseq.train import flops

X = jnp.ones((4, 8, 16))
SQUARE = jnp.ones((16, 16))
MATMUL = 2 * 4 * 8 * 16 * 16


def repeat(x, w):
    return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=7)[0]


@jax.custom_vjp
def doubled(x):
    return x * 2


doubled.defvjp(lambda x: (doubled(x), x), lambda x, ct: (ct * x,))


@pytest.mark.parametrize(
    ("function", "args", "expected"),
    [
        (lambda x, w: x @ w, (X, SQUARE), MATMUL),
        (lambda x, w: jnp.einsum("bth,hk->btk", x, w), (X, SQUARE), MATMUL),
        (repeat, (X, SQUARE), 7 * (MATMUL + X.size)),
        (jax.checkpoint(repeat), (X, SQUARE), 7 * (MATMUL + X.size)),
        (jax.jit(repeat), (X, SQUARE), 7 * (MATMUL + X.size)),
        (lambda x: jax.lax.fori_loop(0, 5, lambda _, c: c + 1.0, x), (X,), 5 * X.size),
        (lambda x, w: jax.lax.cond(x[0, 0, 0] > 0, lambda: x @ w, lambda: x), (X, SQUARE), MATMUL),
        (doubled, (X,), X.size),
        (jnp.fft.rfft, (jnp.ones((3, 64)),), 3 * 2.5 * 64 * 6),
        (lambda x: x.transpose().reshape(-1), (X,), 0),
        (lambda x: jnp.sum(x), (X,), X.size),
    ],
)
def test_count(function, args, expected):
    # Comparisons and loop counters are at most a handful; a loop's body is the smallest thing that could be missed.
    counted = flops.count(function, *args)
    assert expected <= counted <= expected + X.size + 64


def test_the_backward_pass_of_a_matmul_costs_two():
    count = flops.count(jax.grad(lambda x, w: jnp.sum(x @ w), argnums=(0, 1)), X, SQUARE)
    assert 2 * MATMUL <= count <= 3 * MATMUL + 4 * X.size


def test_depthwise_convolution_counts_its_taps():
    kernel = jnp.ones((4, 1, 16))

    def convolve(x):
        return jax.lax.conv_general_dilated(
            x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=16
        )

    assert flops.count(convolve, X) == 2 * 4 * X.size


def test_the_matmul_peak_is_measured_once_and_quickly():
    assert flops.matmul_peak("float32") > 1e8
    assert flops.matmul_peak.cache_info().currsize >= 1


@pytest.mark.skipif(not hasattr(pl, "kernel"), reason="this JAX has no pl.kernel")
def test_a_pallas_kernel_counts_once_for_each_core_and_is_one_step():
    from jax.experimental.pallas import tpu as pltpu

    def double(x_ref, y_ref):
        y_ref[...] = x_ref[...] * 2.0

    if not hasattr(pltpu, "TensorCoreMesh") or "num_cores" not in inspect.signature(pltpu.TensorCoreMesh).parameters:
        mesh = pltpu.create_tensorcore_mesh("core", num_cores=2)
    else:
        mesh = pltpu.TensorCoreMesh(axis_name="core", num_cores=2)
    out = {next(name for name in ("out_type", "out_shape") if name in inspect.signature(pl.kernel).parameters): X}

    def kernel(x):
        return pl.kernel(double, mesh=mesh, **out)(x)

    assert flops.count(kernel, X) == 2 * X.size
    assert longest_loop(lambda x: jax.lax.fori_loop(0, 3, lambda _, c: kernel(c), x), X) == 3
