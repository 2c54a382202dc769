"""Llama-like decoders and OPT equal transformers'; round trips."""

import pytest
from helpers.convert import check_logits, check_round_trip, imported

from jaxseq import convert

ORACLES = {  # name: (source, second names of tied tensors)
    "llama3_rope": ("hf/llama", ()),
    "qwen2": ("hf/qwen2", ()),
    "qwen3": ("hf/qwen3", ()),
    "mistral": ("hf/mistral", ()),
    "phi3": ("hf/phi3", ()),
    "gemma": ("hf/gemma", ("lm_head.weight",)),
    "olmo2": ("hf/olmo2", ()),
    "diffllama": ("hf/diffllama", ()),
    "opt": ("hf/opt", ("lm_head.weight",)),
    "opt_post": ("hf/opt", ("lm_head.weight",)),
}


@pytest.mark.parametrize("form", ("recurrent", "parallel", "chunkwise"))
@pytest.mark.parametrize("name", ORACLES)
def test_logits(name, form):
    check_logits(ORACLES[name][0], name, "input_ids", form, ("logits", "step"))


@pytest.mark.parametrize("name", ORACLES)
def test_round_trip(name):
    check_round_trip(ORACLES[name][0], name, ORACLES[name][1])


def test_one_source_goes_first_where_several_hold_a_model():
    for name, source in (("llama3_rope", "hf/llama"), ("mistral", "hf/mistral"), ("qwen2", "hf/qwen2"), ("qwen3", "hf/qwen3")):
        assert convert._holder(imported(ORACLES[name][0], name)[0]) == source
    phi, _ = imported("hf/phi3", "phi3")
    assert convert._holder(phi) == "hf/llama" and convert.describe("hf/phi3", phi)
