"""Deformable attention for images: its equation, its gradients, points outside, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq import deformable
from jaxseq.errors import UserError
from jaxseq.testing import compare

SIZES = ((5, 7), (3, 2), (1, 4))


def loop(v, sizes, points, weights):
    """Eq. 3 without projections, one point at a time: a pixel counts by its overlap with a square of one pixel at the point."""
    batch, _, heads, size = v.shape
    y = np.zeros((*points.shape[:3], size))
    for b, t, h, level, p in np.ndindex(weights.shape):
        start = sum(rows * columns for rows, columns in sizes[:level])
        rows, columns = sizes[level]
        x, down = points[b, t, h, level, p] * (columns, rows) - 0.5
        for i, j in np.ndindex(rows, columns):
            overlap = max(0, 1 - abs(down - i)) * max(0, 1 - abs(x - j))
            y[b, t, h] += weights[b, t, h, level, p] * overlap * v[b, start + i * columns + j, h]
    return y


def inputs(seed: int, sizes=SIZES, batch=2, time=3, heads=2, points=3, size=4):
    rng = np.random.default_rng(seed)
    pixels = sum(rows * columns for rows, columns in sizes)
    places = rng.uniform(-0.4, 1.4, (batch, time, heads, len(sizes), points, 2))  # some are outside
    weights = rng.dirichlet(np.ones(len(sizes) * points), (batch, time, heads)).reshape(places.shape[:-1])
    return rng.normal(size=(batch, pixels, heads, size)), places, weights


@pytest.mark.parametrize("seed", range(3))
def test_equation_at_random_sizes(seed, x64):
    rng = np.random.default_rng(seed)
    sizes = tuple(map(tuple, rng.integers(1, 7, (rng.integers(1, 4), 2)).tolist()))
    numbers = dict(zip(("time", "heads", "points", "size"), rng.integers(1, 5, 4).tolist(), strict=True))
    v, points, weights = inputs(seed, sizes, **numbers)
    got = jax.jit(deformable.deformable_attention, static_argnums=1)(v, sizes, points, weights)
    assert compare.error(got, loop(v, sizes, points, weights)) < compare.FLOAT64


def test_gradients_are_finite_differences(x64):
    arguments = inputs(3)
    rng = np.random.default_rng(4)
    cotangent = rng.normal(size=loop(arguments[0], SIZES, *arguments[1:]).shape)
    loss = jax.jit(lambda v, points, weights: (deformable.deformable_attention(v, SIZES, points, weights) * cotangent).sum())
    gradients = jax.jit(jax.grad(loss, (0, 1, 2)))(*arguments)
    for i, gradient in enumerate(gradients):
        direction = rng.normal(size=arguments[i].shape)
        ends = []
        for step in (1e-7, -1e-7):  # piecewise linear in the points, so the difference is exact off the grid
            moved = list(arguments)
            moved[i] = arguments[i] + step * direction
            ends.append(float(loss(*moved)))
        np.testing.assert_allclose((ends[0] - ends[1]) / 2e-7, (gradient * direction).sum(), rtol=1e-6)


def test_points_outside_are_zero_and_have_no_gradient():
    image = np.ones((1, 4, 4, 1, 1), np.float32)
    outside = np.array([-0.125, 1.125, 3.0, -1e30, np.inf, -np.inf], np.float32)
    points = np.stack([outside, np.full_like(outside, 0.5)], axis=-1)
    for places in (points, points[:, ::-1]):
        places = np.ascontiguousarray(places)[None, :, None, None]
        value, gradient = jax.jit(jax.value_and_grad(lambda p: deformable.sample(image, p).sum()))(places)
        assert value == 0 and np.all(np.isfinite(gradient))
    corner = np.zeros((1, 1, 1, 1, 2), np.float32)  # a quarter of the corner's pixel is near enough
    np.testing.assert_allclose(deformable.sample(image, corner).ravel(), 0.25)


def test_low_precision_accumulates_in_float32():
    v, points, weights = inputs(5)
    got = deformable.deformable_attention(jnp.asarray(v, jnp.bfloat16), SIZES, points.astype("f4"), weights.astype("f4"))
    assert got.dtype == jnp.bfloat16
    rounded = np.asarray(jnp.asarray(v, jnp.bfloat16), np.float64)
    assert compare.error(got.astype("f4"), loop(rounded, SIZES, points, weights)) < 2**-8


@pytest.mark.parametrize(
    "fields, sizes, message",
    (({"heads": 3}, ((2, 2),), "not a multiple"), ({"levels": 2}, ((2, 2),), "size for each level")),
)
def test_refused(fields, sizes, message):
    module = deformable.DeformableAttention(**{"width": 8, "heads": 2, "levels": 1} | fields)
    x = jnp.zeros((1, 4, 8))
    with pytest.raises(UserError, match=message):
        module.init(jax.random.key(0), x, jnp.zeros((1, 4, 1, 2)), x, sizes)
