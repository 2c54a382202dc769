"""Mixtures of experts against plain loops: routing, dropped tokens, losses, and experts sharded over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers.train_tiny import finish, launch, tiny

import jaxseq
from jaxseq.call import Call
from jaxseq.errors import UserError
from jaxseq.mixers._experts import grouped
from jaxseq.mixers.clamped_moe import ClampedMoE
from jaxseq.mixers.moe import MoE
from jaxseq.testing import compare
from jaxseq.train import flops

SWITCH = {"top_k": 1, "normalize": False, "gated": False, "activation": "relu"}
POS = np.array([[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, -1, -1, -1]], np.int32)


def made(kind=MoE, **fields):
    """(module, params, x [2, 7, 8]) in float32, biased so that experts are used unevenly."""
    module = kind(width=8, hidden=12, **fields)
    x_BTD = jax.random.normal(jax.random.key(1), (2, 7, 8)) + 0.5
    boxed = module.init(jax.random.key(0), x_BTD, None, Call.of(POS, "parallel"))
    assert set(boxed) == {"params"}
    params, rng = jax.device_get(nn.meta.unbox(boxed)["params"]), np.random.default_rng(2)
    if module.bias:
        params = jax.tree.map(lambda x: x if np.any(x) else rng.normal(size=x.shape).astype(np.float32), params)
    return module, jax.tree.map(np.asarray, params), np.asarray(x_BTD)


@functools.partial(jax.jit, static_argnames=("module", "train", "mutable"))
def run(module, params, x, train=False, mutable=(), rngs=None):
    result = module.apply({"params": params}, x, None, Call.of(POS, "parallel", train=train), mutable=mutable, rngs=rngs)
    return result if mutable else result[0]


def expert(module, params, e, x):
    """One token through one expert."""
    act = (lambda v: v / (1 + np.exp(-v))) if module.activation == "silu" else (lambda v: np.maximum(v, 0))
    map_ = lambda name, x: x @ params[name][e] + (params[f"{name}_bias"][e] if module.bias else 0)  # noqa: E731
    up = map_("up", x)
    if isinstance(module, ClampedMoE):
        gate, up = np.minimum(map_("gate", x), module.limit), np.clip(up, -module.limit, module.limit)
        hidden = gate / (1 + np.exp(-module.alpha * gate)) * (up + 1)
    else:
        hidden = act(map_("gate", x)) * up if module.gated else act(up)
    return map_("down", hidden)


def choices(module, params, x):
    """[(expert, weight)] of a token, largest first, and the probabilities of all experts."""
    logits = x @ params["router"]["kernel"] + params["router"].get("bias", 0)
    p = np.exp(logits - logits.max())
    best = np.argsort(-p, kind="stable")[: module.top_k]
    weights = p[best] / (p[best].sum() if module.normalize else p.sum())
    return list(zip(best, weights, strict=True)), p / p.sum()


def loop(module, params, x_BTD, places=None):
    """Token by token; with `places` an expert processes at most this many tokens of a row."""
    y_BTD = np.zeros_like(x_BTD)
    for b in range(x_BTD.shape[0]):
        taken = np.zeros(module.experts, int)
        for t in range(x_BTD.shape[1]):
            for e, weight in choices(module, params, x_BTD[b, t])[0] if POS[b, t] >= 0 else ():
                if places is None or taken[e] < places:
                    y_BTD[b, t] += weight * expert(module, params, e, x_BTD[b, t])
                taken[e] += 1
    return y_BTD


CLAMPED = {"kind": ClampedMoE, "limit": 0.7, "top_k": 2}


@pytest.mark.parametrize("fields", ({}, SWITCH, {"experts": 6, "top_k": 3, "normalize": False}, {"bias": True}, CLAMPED), ids=str)
def test_each_token_meets_its_experts(fields):
    module, params, x = made(**fields)
    for training in (False, True):
        assert compare.error(run(module, params, x, training)[0], loop(module, params, x)) < 1e-5


@pytest.mark.parametrize("fields", ({}, SWITCH, CLAMPED), ids=str)
def test_capacity_drops_the_late_in_training_alone(fields):
    for factor in (0.6, 100.0):
        module, params, x = made(capacity_factor=factor, **fields)
        places = max(1, int(np.ceil(factor * 7 * module.top_k / module.experts)))
        dropped, whole = loop(module, params, x, places), loop(module, params, x)
        assert compare.error(run(module, params, x, train=True)[0], dropped) < 1e-5
        assert compare.error(run(module, params, x)[0], whole) < 1e-5
        assert (compare.error(dropped, whole) > 0.01) == (factor < 100)


def test_capacity_has_the_gradient_of_what_was_kept():
    module, params, x = made(capacity_factor=100.0)
    loss = lambda params, x, train: jnp.sum(jnp.square(run(module, params, x, train)[0]))  # noqa: E731
    dropless, roomy = (jax.grad(loss, (0, 1))(params, x, train) for train in (False, True))
    assert compare.worst(roomy, dropless)[0] < 1e-5


def test_losses():
    module, params, x = made(balance_loss=0.01, z_loss=0.001)
    _, sown = run(module, params, x, mutable=("losses",))
    tokens = [choices(module, params, x[b, t]) for b, t in zip(*np.nonzero(POS >= 0), strict=True)]
    share = np.mean([[sum(e == i for e, _ in best) / 2 for i in range(4)] for best, _ in tokens], axis=0)
    balance = 0.01 * 4 * np.sum(share * np.mean([p for _, p in tokens], axis=0))
    logits = (x @ params["router"]["kernel"])[POS >= 0]
    z = 0.001 * np.mean(np.log(np.exp(logits).sum(-1)) ** 2)
    assert compare.error(sown["losses"]["balance"][0], balance) < 1e-5
    assert compare.error(sown["losses"]["router_z"][0], z) < 1e-5


def test_an_even_router_has_the_least_balance_loss():
    module, params, x = made(experts=2, top_k=2, balance_loss=0.25)
    params["router"]["kernel"] = np.zeros_like(params["router"]["kernel"])
    _, sown = run(module, params, x, mutable=("losses",))
    np.testing.assert_allclose(sown["losses"]["balance"][0], 0.25, rtol=1e-6)
    assert "router_z" not in sown["losses"]


def test_jitter_is_of_training():
    module, params, x = made(jitter=0.5, **SWITCH)
    y = run(module, params, x)[0]
    noisy = [run(module, params, x, train=True, rngs={"dropout": jax.random.key(i)})[0] for i in range(2)]
    assert compare.error(noisy[0], noisy[1]) > 1e-3
    assert compare.error(y, loop(module, params, x)) < 1e-5


def test_what_is_refused():
    with pytest.raises(UserError, match="not causal; set routing to token_choice"):
        MoE(routing="expert_choice")
    with pytest.raises(UserError, match="top_k=3 is outside of 1 … 2"):
        jaxseq.build(jaxseq.config("mixtral", **{"model.moe.experts": 2, "model.moe.top_k": 3}))
    with pytest.raises(UserError, match="no routing"):
        MoE(routing="hash")
    with pytest.raises(UserError, match="have a gate; leave gated true, or use moe"):
        made(kind=ClampedMoE, gated=False)


@pytest.mark.parametrize("sizes", ([5, 0, 130, 2], [0, 0, 0, 0], [300, 0, 0, 0], [0, 0, 0, 1]))
def test_grouped_products_and_gradients(sizes):
    rng, rows = np.random.default_rng(0), 300
    x, w, dy = (rng.normal(size=shape).astype(np.float32) for shape in ((rows, 6), (4, 6, 5), (rows, 5)))
    owner = np.repeat([0, 1, 2, 3], sizes)
    each = np.concatenate([w[owner], np.zeros((rows - len(owner), 6, 5), np.float32)])
    y, gradients = jax.vjp(lambda x, w: grouped(x, w, jnp.array(sizes, jnp.int32)), x, w)
    dx, dw = gradients(dy)
    assert compare.error(y, np.einsum("nd,ndf->nf", x, each)) < 1e-5
    assert compare.error(dx, np.einsum("nf,ndf->nd", dy, each)) < 1e-5
    wanted = [sum(np.outer(x[n], dy[n]) for n in np.nonzero(owner == e)[0]) + np.zeros((6, 5)) for e in range(4)]
    assert compare.error(dw, wanted) < 1e-5


def test_operations_are_those_of_the_chosen_experts():
    module, params, x = made()
    forward = flops.count(lambda params: run(module, params, x)[0], params)
    both = flops.count(jax.grad(lambda params, x: jnp.sum(run(module, params, x)[0]), (0, 1)), params, x)
    exact = 2 * 14 * (2 * 3 * 8 * 12 + 4 * 8)  # tokens x (top 2, three matrices, and the router)
    assert exact < forward < 1.3 * exact
    assert 3 * exact < both < 3 * 1.3 * exact


ON_EIGHT = """
import json, sys
import jax, numpy as np
from jaxseq.config import from_dict
from jaxseq.testing import compare
from jaxseq.train import prepare
from jaxseq.train.mesh import local_bytes, put_batch

data = json.loads(sys.argv[1])
one, spread = from_dict(data), from_dict(data, **{"mesh.data": 2, "mesh.expert": 2, "mesh.tensor": 2})
rng = np.random.default_rng(0)
tokens = rng.integers(0, 257, (8, 17)).astype(np.int32)
pos = np.tile(np.where(np.arange(16) < 12, np.arange(16), np.arange(16) - 12), (8, 1)).astype(np.int32)
pos[0, 9:] = -1
batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "pos": pos, "weights": (pos >= 0).astype(np.float32)}
results = []
for config, devices in ((one, jax.devices()[:1]), (spread, jax.devices())):
    trainer = prepare(config, devices)
    with trainer.scope():
        state = trainer.init(results[0][1] if results else None)
        print("shard_map" in str(jax.make_jaxpr(trainer.gradients)(state, batch)))
        gradients = jax.jit(trainer.gradients)(state, put_batch(batch, trainer.mesh, 8))
    results.append(jax.device_get((gradients, state.variables)))
up = trainer.abstract.params["blocks_0"]["moe"]["up"]
print(local_bytes(up) / (up.size * up.dtype.itemsize))
print(compare.worst(results[1], results[0])[0])
"""


@pytest.mark.slow
@pytest.mark.parametrize("bias", (False, True))
def test_experts_on_eight_devices_train_as_on_one(bias, tmp_path):
    settings = {"model.stack": "2*(attention moe)", "model.moe.bias": bias, "model.dropout": 0.0, "train.length": 16}
    config = tiny(tmp_path, **settings)
    one, eight, share, error = finish(launch(config, tmp_path, devices=8, code=ON_EIGHT), 300).split()
    assert (one, eight, share) == ("False", "True", "0.25")
    assert float(error) < 1e-4


@pytest.mark.parametrize("platform", ("tpu", "cuda"))
def test_accelerators_get_ragged_products(platform):
    """Forward and backward use ragged products and no loop over tiles; seen in the lowered program, which is not compiled."""
    module, params, x = made()
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(run(module, params, x)[0])))
    text = gradient.trace(params).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("ragged_dot") >= 9 and "while" not in text
