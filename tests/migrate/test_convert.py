"""The student of a migration before training: what is taken over, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseq
from jaxseq import UserError, recipes
from jaxseq.call import Call
from jaxseq.migrate import _convert, retention
from jaxseq.mixers.attention import Attention
from jaxseq.models import restack
from jaxseq.testing.networks import moved

TOKENS = np.random.default_rng(0).integers(0, 64, (2, 24)).astype(np.int32)
SMALL = {"model.width": 32, "model.vocab": 64, "model.attention.heads": 4, "model.stack": "5*(attention swiglu)"}


def teacher(**fields) -> recipes.Candidate:
    config = jaxseq.config("transformer", **SMALL | fields)
    params = jaxseq.build(config).init(jax.random.key(0))["params"]
    return recipes.Candidate(config, moved(params, jax.random.key(1)), lambda line: None)


def made(work: recipes.Candidate, text: str) -> recipes.Candidate:
    return _convert.student(work, _convert.targets(text), jax.random.key(2))


def logits(work: recipes.Candidate):
    return jax.jit(work.model.apply)({"params": work.params}, TOKENS)[0]


@pytest.mark.parametrize(("block", "text", "stack"), [
    ("residual", "window:24", "5*(attention:window swiglu)"),
    ("augmented", "window:24", "5*(attention:window swiglu)"),
    ("residual", "window:24,attention", "2*(attention:window swiglu attention swiglu) + 1*(attention:window swiglu)"),
    ("sandwich", "attention,window:24,window:24",
     "1*(attention swiglu attention:window swiglu attention:window swiglu) + 1*(attention swiglu attention:window swiglu)"),
])  # fmt: skip
def test_a_window_over_all_tokens_computes_the_same_in_any_segmentation(block, text, stack):
    """With grouped queries, biases and a rotation of half of the channels."""
    more = {"attention.kv_heads": 2, "attention.bias": True, "attention.rotary_fraction": 0.5, "block": block}
    work = teacher(**{f"model.{name}": value for name, value in more.items()})
    after = made(work, text)
    assert after.config.model.stack == stack
    np.testing.assert_allclose(logits(after), logits(work), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gla", "retention", "mamba2", "rwkv6"])
def test_a_linear_mixer_takes_over_the_projections(name):
    work = teacher(**{"model.attention.kv_heads": 2})
    after = made(work, f"{name},attention")
    label = "discrete_mamba2:mamba2" if name == "mamba2" else name
    assert after.config.model.stack == f"2*({label} swiglu attention swiglu) + 1*({label} swiglu)"
    assert np.isfinite(logits(after)).all()
    old, new = work.params["blocks_0"]["attention"], after.params["blocks_0"][label]
    values = jnp.repeat(old["v"]["kernel"], 2, axis=2)[::2][:2]  # layers 0 and 2
    got = new["in"]["kernel"][:, :, 32:64] if name == "mamba2" else new["v"]["kernel"]
    np.testing.assert_array_equal(got.reshape(values.shape), values)
    out = new["out" if name == "mamba2" else "o"]["kernel"]
    np.testing.assert_array_equal(out.reshape(2, 32, 32), old["o"]["kernel"][::2][:2].reshape(2, 32, 32))
    np.testing.assert_array_equal(after.params["blocks_0"]["attention"]["q"]["kernel"], old["q"]["kernel"][1::2])
    up_LDF = work.params["blocks_0"]["swiglu"]["up"]["kernel"]
    np.testing.assert_array_equal(after.params["blocks_1"]["swiglu"]["up"]["kernel"], up_LDF[4:])
    np.testing.assert_array_equal(after.params["embedding"], work.params["embedding"])


def test_mamba2_starts_as_attention_to_first_order():
    """Weights 1 + q.k / sqrt(K) instead of exp(q.k / sqrt(K)), and RetNet's decays instead of the sum of the weights."""
    work = teacher(**{"model.stack": "1*(attention swiglu)", "model.attention.rotary": False, "model.attention.kv_heads": 2})
    after = made(work, "mamba2")
    new = after.model.blocks[0].mixers[0]
    first = lambda tree: jax.tree.map(lambda x: x[0], tree)  # noqa: E731
    theirs, params = first(work.params["blocks_0"]["attention"]), first(after.params["blocks_0"][new.name])
    x_BTD = jax.random.normal(jax.random.key(3), (2, 9, 32))
    q_BTHK, k_BTHK, v_BTHK = (jnp.einsum("btd,dhk->bthk", x_BTD, theirs[name]["kernel"]) for name in "qkv")
    scores_BHTS = 1 + jnp.einsum("bthk,bshk->bhts", q_BTHK, jnp.repeat(k_BTHK, 2, axis=2)) / 8**0.5
    gamma_H, distance_TS = 1 - 2.0 ** (-5.0 - jnp.arange(4)), jnp.arange(9)[:, None] - jnp.arange(9)
    decay_HTS = jnp.where(distance_TS >= 0, (1 - gamma_H)[:, None, None] * gamma_H[:, None, None] ** distance_TS, 0)
    y_BTHK = jnp.einsum("bhts,hts,bshk->bthk", scores_BHTS, decay_HTS, jnp.repeat(v_BTHK, 2, axis=2))
    wanted_BTD = jnp.einsum("bthk,hkd->btd", y_BTHK, theirs["o"]["kernel"])
    call = Call.of(jnp.arange(9)[None].repeat(2, 0), "chunkwise")
    got_BTD = new.clone(parent=None).apply({"params": params}, x_BTD, None, call)[0]
    np.testing.assert_allclose(got_BTD, wanted_BTD, rtol=1e-4, atol=1e-4 * jnp.abs(wanted_BTD).max())


def test_retention_rotates_the_same_pairs():
    """With attention's frequencies set to those of retention, the scores q k are equal up to retention's decay and scale."""
    from jaxseq.layers import rotate

    size, theta = 8, 10000.0 ** (4 / 3)  # theta^(-2 i / 8) = 10000^(-i / 3)
    mixer = Attention(width=8, heads=1, theta=theta)
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 8, 1, size)) for i in range(3))
    new = retention.arrays(mixer, {"q/kernel": q, "k/kernel": k, "v/kernel": v, "o/kernel": v}, {})
    x_BTD, pos_BT = jax.random.normal(jax.random.key(5), (1, 7, 8)), jnp.arange(7)[None]

    def scores(q_LDHK, k_LDHK, frequency_F, interleaved):
        project = lambda w: rotate(jnp.einsum("btd,dhk->bthk", x_BTD, w[0]), pos_BT, frequency_F, interleaved)  # noqa: E731
        return jnp.einsum("bthk,bshk->bts", project(q_LDHK), project(k_LDHK))

    wanted = scores(q, k, mixer._frequencies(size), False)
    got = scores(new["q/kernel"], new["k/kernel"], 10000.0 ** -jnp.linspace(0, 1, size // 2), True)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_places_are_in_the_order_of_the_network():
    model = jaxseq.build(jaxseq.config("transformer", **SMALL | {"model.stack": "2*(attention swiglu) + (mamba)"}))
    assert [place.mixer.name for place in restack.places(model)] == ["attention", "swiglu"] * 2 + ["mamba"]


@pytest.mark.parametrize(
    ("fields", "text", "message"),
    [
        ({}, "linear", "attention cannot become 'linear'; choose one or more of: attention, gla"),
        ({}, "attention", "all layers would keep their attention"),
        ({}, "window", "write it like window:128"),
        ({}, "attention:3,gla", "attention takes no argument"),
        ({"model.stack": "2*(mamba)"}, "gla", "no softmax attention that could be replaced; its mixers are Mamba"),
        ({"model.attention.head_size": 16}, "retention", "as the stream, 32, but these are 4 of 16 channels"),
        ({"model.stack": "4/2*(attention swiglu)"}, "gla", "layers that share weights"),
        ({"model.block": "parallel"}, "gla,attention", "of kind Parallel are not one after another"),
    ],
)
def test_what_cannot_be_migrated_is_refused_in_one_line(fields, text, message):
    with pytest.raises(UserError, match=message) as caught:
        made(teacher(**fields), text)
    assert "\n" not in str(caught.value)


def test_what_is_not_taken_over_is_said():
    work, said = teacher(**{"model.attention.bias": True}), []
    made(recipes.Candidate(work.config, work.params, said.append), "gla")
    lost = "not taken over, to be made up for in training"
    assert said == [f"gla has no rotary positions: {lost}", f"gla has no biases: {lost}"]
