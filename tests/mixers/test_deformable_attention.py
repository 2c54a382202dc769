"""The mixer of deformable attention: its equation, its initial offsets, what it can learn, and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from oracles import deformable_attention

from jaxseq.call import Call
from jaxseq.errors import UserError
from jaxseq.mixers.deformable_attention import CausalDeformableAttention, distances
from jaxseq.testing import compare
from jaxseq.testing.networks import moved


def built(mixer, x):
    pos = np.tile(np.arange(x.shape[1], dtype=np.int32), (len(x), 1))
    params = nn.meta.unbox(jax.jit(lambda x: mixer.init(jax.random.key(0), x, None, Call.of(pos, "parallel")))(x))
    return params, jax.jit(lambda params, x: mixer.apply(params, x, None, Call.of(pos, "parallel")).y_BTD)


def test_equation(x64):
    mixer = CausalDeformableAttention(width=8, layers=2, heads=2, points=3, reach=6, dtype=jnp.float64)
    x = jax.random.normal(jax.random.key(1), (2, 13, 8), jnp.float64)
    params, apply = built(mixer, x)
    params = moved(params, jax.random.key(2))
    p = jax.tree.map(np.asarray, params["params"])
    v, logits, scores = (np.einsum("btd,dhk->bthk", x, p[name]["kernel"]) for name in ("v", "offsets", "weights"))
    offsets = 6 / (1 + np.exp(-logits - p["offsets"]["bias"]))
    weights = np.exp(scores + p["weights"]["bias"])
    y = deformable_attention.loop(v, offsets, weights / weights.sum(axis=-1, keepdims=True), 6)
    assert compare.error(apply(params, x), np.einsum("bthk,hkd->btd", y, p["o"]["kernel"])) < compare.FLOAT64


def test_the_first_offsets_spread_over_the_reach():
    """Without training every head reads near and far tokens, and no two points are the same."""
    offsets = np.asarray(distances(4, 4, 64))
    assert len(np.unique(offsets)) == 16 and 0 < offsets.min() < 0.5 and 48 < offsets.max() < 64
    assert (np.diff(np.sort(offsets.ravel()), 2) > 0).all()  # denser near the token
    assert (offsets.min(axis=1) < 1.5).all() and (offsets.max(axis=1) > 20).all()
    x = jnp.ones((1, 2, 16))
    params, _ = built(CausalDeformableAttention(width=16, layers=2), x)
    bias = params["params"]["offsets"]["bias"]
    np.testing.assert_allclose(64 / (1 + np.exp(-bias)), offsets, rtol=1e-5)


def test_gradient_descent_finds_a_delay():
    """The offset of one point moves from its first place, 2.3 tokens, to the delay that makes the output its input: 4 tokens."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(np.cumsum(rng.normal(size=(4, 64, 1)), axis=1), jnp.float32)  # neighbours are alike
    wanted = jnp.pad(x, ((0, 0), (4, 0), (0, 0)))[:, :-4]
    mixer = CausalDeformableAttention(width=1, layers=1, heads=1, points=1, reach=10)
    params, apply = built(mixer, x)
    params["params"]["v"]["kernel"] = params["params"]["o"]["kernel"] = jnp.ones((1, 1, 1))
    place = lambda bias: 10 / (1 + np.exp(-float(bias[0, 0])))  # noqa: E731
    bias = params["params"]["offsets"]["bias"]
    assert abs(place(bias) - 2.3) < 0.1

    @jax.jit
    def step(bias):
        own = {"params": params["params"] | {"offsets": params["params"]["offsets"] | {"bias": bias}}}
        return jnp.mean(jnp.square(apply(own, x) - wanted)[:, 10:])

    for _ in range(100):
        bias -= 0.05 * jax.grad(step)(bias)
    assert abs(place(bias) - 4) < 0.1


@pytest.mark.parametrize("fields", ({"heads": 3}, {"points": 0}, {"reach": 0}), ids=str)
def test_refused(fields):
    with pytest.raises(UserError):
        CausalDeformableAttention(width=16, layers=2, **fields).init_state(1, 8)
