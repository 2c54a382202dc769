"""Hybrids of Mamba-2 and attention equal transformers' (tests/files/published), in every form and token by token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.places import FILES

import jaxseq
from jaxseq import convert
from jaxseq.convert import _files
from jaxseq.errors import UserError
from jaxseq.testing import compare

NAMES = ("nemotron_h", "granite_moe_hybrid", "granite_moe_hybrid_experts", "falcon_h1", "falcon_h1_normed")


@functools.cache
def opened(name: str):
    """(model, params, tokens, their logits)"""
    _, _, _, model, params = convert.open_model(FILES / "published" / name)
    with np.load(FILES / "published" / name / "outputs.npz") as arrays:
        return model, params, jnp.asarray(arrays["input_ids"], jnp.int32), arrays["logits"]


@pytest.mark.parametrize("form", ("recurrent", "parallel", "chunkwise"))
@pytest.mark.parametrize("name", NAMES)
def test_logits_in_every_form(name, form):
    model, params, tokens_BT, wanted = opened(name)
    logits_BTV, _ = jax.jit(model.apply, static_argnames="form")({"params": params}, tokens_BT, form=form)
    assert compare.error(logits_BTV, wanted) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_logits_token_by_token(name):
    model, params, tokens_BT, wanted = opened(name)
    state, apply = model.init_state(*tokens_BT.shape), jax.jit(functools.partial(model.apply, form="recurrent"))
    for t in range(tokens_BT.shape[1]):
        logits_BTV, state = apply({"params": params}, tokens_BT[:, t : t + 1], state)
        assert compare.error(logits_BTV[:, 0], wanted[:, t]) < 1e-5, t


def describe(name: str) -> tuple[str, dict]:
    source, _, _, model, _ = convert.open_model(FILES / "published" / name)
    return source, convert.describe(source, model)


def test_names_in_memory_are_read():
    """transformers renames tensors as it writes them."""
    for name, pairs in {
        "nemotron_h": {"backbone.": "model."},
        "granite_moe_hybrid_experts": {
            "block_sparse_moe.input_linear.weight": "block_sparse_moe.experts.gate_up_proj",
            "block_sparse_moe.output_linear.weight": "block_sparse_moe.experts.down_proj",
            "router.layer.weight": "router.weight",
        },
    }.items():
        model, params, *_ = opened(name)
        source, theirs = describe(name)
        tensors = convert.to_state_dict(source, model, params)
        for ours, memory in pairs.items():
            assert any(ours in key for key in tensors)
            tensors = {key.replace(ours, memory): value for key, value in tensors.items()}
        jax.tree.map(np.testing.assert_array_equal, convert.from_state_dict(source, theirs, tensors)[1], params)


def test_older_names_of_layers_are_read():
    _, theirs = describe("nemotron_h")
    older = {key: value for key, value in theirs.items() if key != "layers_block_type"} | {"hybrid_override_pattern": "M-M*-"}
    config = convert._source("hf/nemotron_h").config
    assert jaxseq.build(config(older)) == jaxseq.build(config(theirs))
    with pytest.raises(UserError, match="hybrid_override_pattern='E'"):
        config(older | {"hybrid_override_pattern": "ME*-"})
    _, theirs = describe("granite_moe_hybrid")
    config = convert._source("hf/granite_moe_hybrid").config
    older = theirs | {"layer_types": ["mamba", "attention", "mamba"]}
    assert jaxseq.build(config(older)) == jaxseq.build(config(theirs))


def test_residual_and_logits_are_multiplied():
    """A model without multipliers differs, and an export contains them."""
    _, theirs = describe("granite_moe_hybrid")
    assert [theirs[f"{name}_multiplier"] for name in ("embedding", "attention", "residual")] == [3.0, 0.3, 0.7]
    assert theirs["logits_scaling"] == 1.5
    plain = convert._source("hf/granite_moe_hybrid").config(theirs | {"residual_multiplier": 1.0})
    assert plain.model.block == "residual"


def test_every_multiplier_of_falcon_h1_comes_back():
    """As it was read, bit for bit: they are no part of the weights."""
    _, theirs = describe("falcon_h1")
    given = _files.read(FILES / "published" / "falcon_h1")[0]
    names = [name for name in given if "multiplier" in name]
    assert len(names) == 9 and {name: theirs[name] for name in names} == {name: given[name] for name in names}
    config = convert._source("hf/falcon_h1").config
    assert config(theirs | {"mlp_multipliers": None}) == config(theirs | {"mlp_multipliers": [1.0, 1]})


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("falcon_h1_normed", "mamba_norm_before_gate", True, "mamba_norm_before_gate=False, and this config has .*=True"),
        ("falcon_h1", "mlp_bias", True, "mlp_bias=False, and this config has mlp_bias=True"),
        ("falcon_h1", "projectors_bias", True, "projectors_bias=False, and this config has projectors_bias=True"),
        ("falcon_h1", "mamba_proj_bias", True, "mamba_proj_bias=False, and this config has mamba_proj_bias=True"),
        ("falcon_h1", "mamba_conv_bias", False, "mamba_conv_bias=True, and this config has mamba_conv_bias=False"),
        ("falcon_h1", "hidden_act", "gelu", "hidden_act='silu', and this config has hidden_act='gelu'"),
        ("falcon_h1", "mamba_d_head", 5, "mamba_d_head=6, and this config has mamba_d_head=5"),
        ("falcon_h1", "mlp_multipliers", [1.0], r"reads 2 positive numbers there, and this config has mlp_multipliers=\[1.0\]"),
        ("falcon_h1", "ssm_multipliers", [1, 1, 1, "1", 1], "reads 5 positive numbers there, .* ssm_multipliers=.*'1'"),
        ("falcon_h1", "key_multiplier", None, "key_multiplier of the config is None; it must be a number"),
        ("falcon_h1", "mamba_rms_norm", "yes", "mamba_rms_norm of the config is 'yes'; it must be true or false"),
    ],
)
def test_what_falcon_h1_refuses(name, field, value, message):
    source, theirs = describe(name)
    with pytest.raises(UserError, match=message):
        convert.from_state_dict(source, theirs | {field: value}, {})


def test_the_order_of_norm_and_gate_is_nothing_without_a_norm():
    source, theirs = describe("falcon_h1")
    config = convert._source(source).config
    assert config(theirs | {"mamba_norm_before_gate": True}) == config(theirs)


def test_only_falcon_h1_holds_its_parts():
    """Each of its blocks and mixers is one that the sources of plain models do not take."""
    model, *_ = opened("falcon_h1")
    (block,) = model.blocks
    mamba, attention, swiglu = block.mixers
    describe = convert._source("hf/falcon_h1").describe
    for mixers in ((attention, mamba, swiglu), (mamba, attention.clone(window=3), swiglu), (mamba, attention)):
        assert describe(model.clone(blocks=(block.clone(mixers=mixers),))) is None
    with pytest.raises(UserError, match="no source"):
        convert._holder(model.clone(blocks=(block.clone(mixers=(mamba, swiglu)),)))
