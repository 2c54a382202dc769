"""GPT-2, GPT-NeoX and Mixtral equal transformers'; round trips; what the sources refuse."""

import jax
import numpy as np
import pytest
from helpers.convert import check_logits, check_round_trip, imported, oracle

import jaxseq
from jaxseq import convert
from jaxseq.errors import UserError

SOURCES = {"hf/gpt2": "gpt2", "hf/gpt_neox": "gpt_neox", "hf/mixtral": "mixtral"}
TIED = {"gpt2": ("lm_head.weight",)}  # a second name of the embedding, which is stored once


@pytest.mark.parametrize("form", ("recurrent", "parallel", "chunkwise"))
@pytest.mark.parametrize("source", SOURCES)
def test_logits(source, form):
    check_logits(source, SOURCES[source], "input_ids", form, ("logits", "step"))


@pytest.mark.parametrize("source", SOURCES)
def test_round_trip(source):
    name = SOURCES[source]
    if name != "mixtral":  # its tensors in memory differ from those in files, see below
        check_round_trip(source, name, TIED.get(name, ()))


def test_gpt2_as_published():
    """Without the prefix, and with the causal masks."""
    model, params = imported("hf/gpt2", "gpt2")
    parts = oracle("gpt2")
    bare = {name.removeprefix("transformer."): x for name, x in parts["param"].items() if name != "lm_head.weight"}
    bare |= {f"h.{i}.attn.bias": np.tril(np.ones((1, 1, 32, 32))) for i in range(2)}
    again, params_again = convert.from_state_dict("hf/gpt2", parts["config"], bare)
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, params_again, params)


@pytest.mark.parametrize(
    ("source", "buffers"),
    [
        ("hf/gpt_neox", ("gpt_neox.layers.0.attention.bias", "gpt_neox.layers.0.attention.rotary_emb.inv_freq")),
        ("hf/llama", ("model.layers.0.self_attn.rotary_emb.inv_freq",)),
    ],
)
def test_what_older_files_carry_is_left_out(source, buffers):
    name = source.removeprefix("hf/")
    tensors = oracle(name)["param"] | dict.fromkeys(buffers, np.ones(4, np.float32))
    _, params = convert.from_state_dict(source, oracle(name)["config"], tensors)
    jax.tree.map(np.testing.assert_array_equal, params, imported(source, name)[1])


def test_mixtral_as_published():
    """One matrix per expert, under the names of 2023."""
    model, params = imported("hf/mixtral", "mixtral")
    parts, apart = oracle("mixtral"), {}
    for name, x in parts["param"].items():
        prefix = name.partition(".mlp.")[0] + ".block_sparse_moe"
        if name.endswith("gate_up_proj"):
            halves = zip(("w1", "w3"), np.split(x, 2, axis=1), strict=True)
            apart |= {f"{prefix}.experts.{e}.{w}.weight": half[e] for w, half in halves for e in range(len(x))}
        elif name.endswith("down_proj"):
            apart |= {f"{prefix}.experts.{e}.w2.weight": x[e] for e in range(len(x))}
        else:
            apart[name.replace(".mlp.gate.", ".block_sparse_moe.gate.")] = x
    again, params_again = convert.from_state_dict("hf/mixtral", parts["config"], apart)
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, params_again, params)
    exported = convert.to_state_dict("hf/mixtral", model, params)
    jax.tree.map(np.testing.assert_array_equal, exported, apart)


def test_each_architecture_has_one_source_for_export():
    small = {"model.width": 32, "model.vocab": 11}
    for name, source in {"gpt2": "hf/gpt2", "llama": "hf/llama", "neox": "hf/gpt_neox", "mixtral": "hf/mixtral"}.items():
        model = jaxseq.build(jaxseq.config(name, **small))
        holds = [s for s in SOURCES | {"hf/llama": None} if _holds(s, model)]
        assert holds == [source]
    for name in ("switch", "pangu"):
        model = jaxseq.build(jaxseq.config(name, **small))
        assert not any(_holds(s, model) for s in SOURCES | {"hf/llama": None})


def _holds(source, model) -> bool:
    try:
        return bool(convert.describe(source, model))
    except UserError:
        return False


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("llama", "model.attention.alibi", True),
        ("llama", "model.attention.interleaved", True),
        ("llama", "model.attention.output_bias", True),
        ("gpt2", "model.attention.bias", False),
        ("neox", "model.parallel.shared_norm", True),
        ("mixtral", "model.moe.normalize", False),
    ],
)
def test_no_source_takes_what_it_cannot_hold(name, field, value):
    model = jaxseq.build(jaxseq.config(name, **{field: value, "model.vocab": 11}))
    assert not any(_holds(s, model) for s in SOURCES | {"hf/llama": None})


def test_configs_that_cannot_be_honoured():
    with pytest.raises(UserError, match="scale_attn_by_inverse_layer_idx=False, and this config has .*=True"):
        convert.from_state_dict("hf/gpt2", oracle("gpt2")["config"] | {"scale_attn_by_inverse_layer_idx": True}, {})
    scaled = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}
    for source, name in (("hf/mixtral", "mixtral"), ("hf/gpt_neox", "gpt_neox"), ("hf/llama", "llama")):
        with pytest.raises(UserError, match="no dynamic rotary positions, and this config has rope_parameters={'rope_"):
            convert.from_state_dict(source, oracle(name)["config"] | scaled, {})
