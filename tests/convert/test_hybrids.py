"""Hybrids of several mixers equal transformers'; round trips."""

import jax
import numpy as np
import pytest
from helpers.convert import check_comes_back, check_logits, imported, oracle, saved

import jaxseq
from jaxseq import convert
from jaxseq.convert import _table
from jaxseq.convert.sources import _hybrids

NAMES = ("lfm2", "kimi_linear", "qwen3_next", "deepseek_v3", "olmo_hybrid", "minimax", "recurrent_gemma", "gemma2", "gpt_oss")
SOURCES = {f"hf/{name}": name for name in NAMES}
WRONG = {"recurrent_gemma": ("step",)}  # the reference's own stepwise and whole outputs differ by 0.5


@pytest.mark.parametrize("form", ("recurrent", "parallel", "chunkwise"))
@pytest.mark.parametrize("source", SOURCES)
def test_logits(source, form):
    name = SOURCES[source]
    check_logits(source, name, "input_ids", form, tuple(set(oracle(name)["output"]) - set(WRONG.get(name, ()))))


@pytest.mark.parametrize("source", SOURCES)
def test_names_in_memory_come_back_bit_for_bit(source):
    """transformers joins experts and convolutions while loading; test_published tests the names in files."""
    found, name = convert._source(source), SOURCES[source]
    model, params = imported(source, name)
    parts = oracle(name)
    theirs = convert._completed(found, parts["config"], parts["param"])
    exported = dict(_table.dump(found.entries(theirs), params))
    second_names = {alias for alias, first in found.aliases(theirs).items() if first in exported}
    wanted = saved(source, name, second_names)
    assert set(exported) == set(wanted)
    for key, value in exported.items():
        np.testing.assert_array_equal(value, wanted[key], err_msg=key, strict=True)
    check_comes_back(source, model, params, convert.to_state_dict(source, model, params))


def test_convolutions_in_three_equal_parts():
    """transformers splits OLMo Hybrid's convolution into three equal parts, whatever the sizes of q, k and v."""
    model, params = imported("hf/olmo_hybrid", "olmo_hybrid")
    exported = convert.to_state_dict("hf/olmo_hybrid", model, params)
    names = [f"model.layers.0.linear_attn.{letter}_conv1d.weight" for letter in "qkv"]
    assert [len(exported[name]) for name in names] == [24, 24, 48]
    parts = np.split(np.concatenate([exported[name] for name in names]), 3)
    check_comes_back("hf/olmo_hybrid", model, params, exported | dict(zip(names, parts, strict=True)))


@pytest.mark.parametrize(
    ("source", "extra"),
    [
        ("hf/deepseek_v3", ("model.layers.2.eh_proj.weight", "model.layers.2.mlp.gate.weight")),
        ("hf/qwen3_next", ("mtp.fc.weight",)),
    ],
)
def test_modules_that_predict_a_second_token_are_left_out(source, extra):
    name = SOURCES[source]
    tensors = oracle(name)["param"] | dict.fromkeys(extra, np.ones(3, np.float32))
    _, params = convert.from_state_dict(source, oracle(name)["config"], tensors)
    jax.tree.map(np.testing.assert_array_equal, params, imported(source, name)[1])


def test_segments():
    a, b = ("a", "x"), ("b", "x")
    assert _hybrids.segments([a, a, b] * 3) == [(3, (a, a, b))]
    assert _hybrids.segments([a, a, a]) == [(3, (a,))]
    assert _hybrids.segments([a, a, b, a]) == [(2, (a,)), (1, (b,)), (1, (a,))]
    assert _hybrids.segments([a, a, b] * 3 + [a, b] * 3 + [a]) == [(3, (a, a, b)), (3, (a, b)), (1, (a,))]
    places = [(place.path, list(place.layers)) for place in _hybrids.places([a, b] * 2) if place.label != "x"]
    assert places == [("blocks_0/a", [0, 2]), ("blocks_0/b", [1, 3])]


def test_our_laptop_size_goes_out():
    model = jaxseq.build(jaxseq.config("lfm2", **{"model.width": 32, "model.vocab": 11}))
    theirs = convert.describe("hf/lfm2", model)
    assert theirs["layer_types"] == ["conv", "conv", "full_attention"] * 2 and theirs["num_hidden_layers"] == 6
    published = jaxseq.build(jaxseq.config("lfm2:350m"))
    assert convert.describe("hf/lfm2", published)["full_attn_idxs"] == [2, 5, 8, 10, 12, 14]
    deep = convert.describe("hf/lfm2", jaxseq.build(jaxseq.config("lfm2:2.6b")))
    assert deep["full_attn_idxs"] == [2, 5, 9, 13, 17, 21, 24, 27] and deep["num_hidden_layers"] == 30
    other = jaxseq.build(jaxseq.config("lfm2", **{"model.width": 32, "model.vocab": 11, "model.normed_attention.gated": True}))
    assert convert._source("hf/lfm2").describe(other) is None


GRANITE = {"embedding_multiplier": 12.0, "position_embedding_type": None, "tie_word_embeddings": True, "vocab_size": 100352}


@pytest.mark.parametrize(
    ("name", "source", "attention", "layers", "fields"),
    [
        ("granite_hybrid:350m", "granite_moe_hybrid", (10, 13, 17, 27), 32, GRANITE | {"mamba_d_head": 32, "logits_scaling": 3.0,
         "attention_multiplier": 0.015625, "residual_multiplier": 0.246}),
        ("granite_hybrid:1b", "granite_moe_hybrid", (5, 15, 25, 35), 40, GRANITE | {"mamba_d_head": 64, "logits_scaling": 6.0,
         "attention_multiplier": 0.0078125}),
        ("granite_hybrid:3b", "granite_moe_hybrid", (5, 15, 25, 35), 40, GRANITE | {"mamba_d_head": 64, "logits_scaling": 8.0,
         "attention_multiplier": 0.015625}),
        ("granite_hybrid:7b-a1b", "granite_moe_hybrid", (5, 15, 25, 35), 40, GRANITE | {"num_local_experts": 64}),
        ("granite_hybrid:32b-a9b", "granite_moe_hybrid", (5, 15, 25, 35), 40, GRANITE | {"num_local_experts": 72}),
        ("qwen3_next:80b-a3b", "qwen3_next", range(3, 48, 4), 48, {"mlp_only_layers": [], "num_experts": 512, "rope_theta": 1e7}),
        ("kimi_linear:48b-a3b", "kimi_linear", (3, 7, 11, 15, 19, 23, 26), 27, {"num_experts": 256, "moe_renormalize": True,
         "mlp_layer_types": ["dense", *26 * ["sparse"]]}),
    ],
)  # fmt: skip
def test_released_sizes_go_out_as_their_configs(name, source, attention, layers, fields):
    theirs = convert.describe(f"hf/{source}", jaxseq.build(jaxseq.config(name)))
    assert theirs["layer_types"] == ["full_attention" if i in attention else "linear_attention" for i in range(layers)]
    assert {key: theirs[key] for key in fields} == fields
