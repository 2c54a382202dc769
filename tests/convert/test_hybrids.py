"""Hybrids of several mixers as transformers computes them, and the way back."""

import pytest
from helpers.convert import check_logits, check_round_trip, oracle

import jaxseq
from jaxseq import convert
from jaxseq.convert.sources import _hybrids

SOURCES = {"hf/lfm2": "lfm2", "hf/kimi_linear": "kimi_linear"}
TIED = {"lfm2": ("lm_head.weight",)}


@pytest.mark.parametrize("form", ("recurrent", "parallel", "chunkwise"))
@pytest.mark.parametrize("source", SOURCES)
def test_logits(source, form):
    name = SOURCES[source]
    check_logits(source, name, "input_ids", form, tuple(x for x in ("logits", "step") if x in oracle(name)["output"]))


@pytest.mark.parametrize("source", SOURCES)
def test_round_trip(source):
    check_round_trip(source, SOURCES[source], TIED.get(SOURCES[source], ()))


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
    other = jaxseq.build(jaxseq.config("lfm2", **{"model.width": 32, "model.vocab": 11, "model.normed_attention.gated": True}))
    assert convert._module("hf/lfm2").describe(other) is None
