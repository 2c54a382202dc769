"""BERT and ALBERT equal transformers', with and without the head; round trip."""

import jax
import numpy as np
import pytest
from helpers.convert import imported, oracle

import jaxseq
from jaxseq import convert
from jaxseq.convert.sources import hf_albert
from jaxseq.errors import UserError
from jaxseq.testing import compare

SOURCES = {"bert": "hf/bert", "bert_base": "hf/bert", "albert": "hf/albert"}


def output(name: str):
    """Our EncoderOutput for the oracle's input, and the mask of its real tokens."""
    given, (model, params) = oracle(name)["input"], imported(SOURCES[name], name)
    mask = given["attention_mask"] > 0
    pos = np.where(mask, np.arange(mask.shape[1]), -1).astype(np.int32)
    types = given["token_type_ids"].astype(np.int32) if "token_type_ids" in given else None
    return jax.jit(model.apply)({"params": params}, given["input_ids"].astype(np.int32), pos, types), mask


@pytest.mark.parametrize(("name", "pairs"), [
    ("bert", {"logits": "logits"}), ("bert_base", {"hidden": "last_hidden_state", "pooled": "pooler"}),
    ("albert", {"logits": "logits", "hidden": "hidden_4"}),
])  # fmt: skip
def test_outputs(name, pairs):
    ours, mask = output(name)
    for own, theirs in pairs.items():
        got, wanted = np.asarray(getattr(ours, own)), oracle(name)["output"][theirs]
        got, wanted = (got[mask], wanted[mask]) if wanted.ndim == 3 else (got, wanted)
        assert compare.error(got, wanted) < 1e-5, own
    assert not np.asarray(ours.hidden)[~mask].any()


@pytest.mark.parametrize("name", SOURCES)
def test_round_trip(name):
    """Bits and names are equal; tied tensors are written once."""
    source = SOURCES[name]
    parts, (model, params) = oracle(name), imported(source, name)
    exported = convert.to_state_dict(source, model, params)
    twice = {f"{head}predictions.decoder.{part}" for head in ("", "cls.") for part in ("weight", "bias")}
    assert exported.keys() == parts["param"].keys() - twice
    for key, value in exported.items():
        np.testing.assert_array_equal(value, parts["param"][key], err_msg=key, strict=True)
    again_model, again = convert.from_state_dict(source, convert.describe(source, model), exported)
    assert again_model == model
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inner_group_num": 2}, "inner_group_num=2"),
        ({"num_hidden_groups": 3}, "num_hidden_groups=3"),
        ({"architectures": ["AlbertForTokenClassification"]}, "AlbertForTokenClassification"),
    ],
)
def test_what_albert_cannot_be_is_refused(change, message):
    theirs = convert.describe("hf/albert", imported("hf/albert", "albert")[0]) | change
    with pytest.raises(UserError, match=message) as caught:
        hf_albert.config(theirs)
    assert "\n" not in str(caught.value)


def test_layers_that_share_weights_divide_the_layers():
    with pytest.raises(UserError, match=r"model\.distinct=3 .* model\.layers=4"):
        jaxseq.build(jaxseq.config("bert", **{"model.layers": 4, "model.distinct": 3}))
