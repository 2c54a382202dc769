"""The mixer of the Forgetting Transformer: its equation, the laws with its options, removed heads, and rewinding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from oracles.forgetting_attention import loop

import jaxseq
from jaxseq.call import Call
from jaxseq.compress import _units
from jaxseq.layers import Parameter
from jaxseq.mixers.forgetting_attention import ForgettingAttention
from jaxseq.models import state as states
from jaxseq.testing import compare
from jaxseq.testing.networks import moved

PRO = {"qk_norm": True, "output_norm": True, "output_gate": True, "kv_shift": True}
OPTIONS = {
    "LLaMA": {}, "Pro": PRO | {"kv_heads": 2}, "window": {"window": 4, "kv_heads": 1, "head_size": 6},
    **{name: {name: True} for name in PRO},
}  # fmt: skip
TIME = 9
POS = np.tile(np.arange(TIME, dtype=np.int32), (2, 1))


def made(**fields):
    """(mixer, parameters, inputs)."""
    mixer = ForgettingAttention(width=16, layers=2, dtype=jnp.float64, **fields)

    def make():
        x_BTD = jax.random.normal(jax.random.key(1), (2, TIME, 16), jnp.float64)
        boxed = mixer.init(jax.random.key(0), x_BTD, None, Call.of(POS, "parallel"))
        return moved(nn.meta.unbox(boxed), jax.random.key(2)), x_BTD

    return mixer, *jax.jit(make)()


def run(mixer, params, x_BTD):
    return jax.jit(lambda params, x_BTD: mixer.apply(params, x_BTD, None, Call.of(POS, "parallel")).y_BTD)(params, x_BTD)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def plain(mixer, params, x_BTD):
    """The equations of the mixer's docstring in numpy."""
    p = jax.tree.map(np.asarray, params["params"])
    q, k, v = (np.einsum("btd,dhk->bthk", x_BTD, p[name]["kernel"]) for name in "qkv")
    normed = lambda x: x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + mixer.eps)  # noqa: E731

    def shifted(x, name):
        a = sigmoid(x_BTD @ p[f"{name}_shift"]["kernel"])[..., None]
        return a * np.concatenate([0 * x[:, :1], x[:, :-1]], axis=1) + (1 - a) * x

    if mixer.kv_shift:
        k, v = shifted(k, "k"), shifted(v, "v")
    if mixer.qk_norm:
        q, k = normed(q) * p["q_norm"]["scale"], normed(k) * p["k_norm"]["scale"]
    y = loop(q, k, v, np.log(sigmoid(x_BTD @ p["f"]["kernel"] + p["f"]["bias"])), mixer.window)
    y = normed(y) * p["norm_scale"] if mixer.output_norm else y
    y = y * sigmoid(np.einsum("btd,dhk->bthk", x_BTD, p["g"]["kernel"])) if mixer.output_gate else y
    return np.einsum("bthk,hkd->btd", y, p["o"]["kernel"])


@pytest.mark.parametrize("name", OPTIONS)
def test_equation(name, x64):
    mixer, params, x_BTD = made(**OPTIONS[name])
    assert compare.error(run(mixer, params, x_BTD), plain(mixer, params, np.asarray(x_BTD))) < compare.FLOAT64


def test_a_removed_head_is_one_that_was_zero(x64):
    """The mixer without its last key head equals the whole one whose output projection is zero for that head's queries."""
    mixer, params, x_BTD = made(**OPTIONS["Pro"])
    units = mixer.units("heads")
    boxes = mixer.boxed()["params"]

    def without(box, x):
        for axis, name in enumerate(box.names):
            if name in units.axes:
                kept = _units.members(units, name, x.shape[axis])[:-1].reshape(-1)
                x = jnp.take(x, kept, axis)
        return x

    fewer = jax.tree.map(without, boxes, params["params"], is_leaf=lambda leaf: isinstance(leaf, Parameter))
    small = mixer.clone(**units.fields(units.count - 1))
    params["params"]["o"]["kernel"] = params["params"]["o"]["kernel"].at[2:].set(0)
    assert compare.error(run(small, {"params": fewer}, x_BTD), run(mixer, params, x_BTD)) < compare.FLOAT64


def test_rewinding_undoes_decays(x64):
    """The state after a rewind is as if the dropped tokens had never been read: their decays are in no sum."""
    model = jaxseq.build(jaxseq.config("transformer", **{
        "model.stack": "1*(forgetting_attention swiglu)", "model.width": 16, "model.vocab": 11, "model.swiglu.hidden": 8,
    }))  # fmt: skip
    first, tokens = np.random.default_rng(0).integers(0, 11, (2, 2, 4))
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    read = jax.jit(lambda tokens, state, pos: model.apply({"params": params}, tokens, state, pos, form="parallel")[1])
    pos_BT, kept_B = np.tile(np.arange(4), (2, 1)), np.array([1, 3])
    before = read(first, model.init_state(2, 8), pos_BT)
    after = read(tokens, before, 4 + pos_BT)
    rewind = jax.jit(lambda *arguments: states.rewind(model, params, *arguments, form="parallel"))
    rewound = rewind(before, after, tokens, kept_B)
    wanted = read(tokens, before, np.where(pos_BT < kept_B[:, None], 4 + pos_BT, -1))
    assert compare.worst(rewound, wanted)[0] < 1e-5 < compare.worst(after, wanted)[0]
