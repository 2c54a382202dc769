"""BERT equals transformers', with and without the head; round trip."""

import jax
import numpy as np
import pytest
from helpers.convert import imported, oracle

from jaxseq import convert
from jaxseq.testing import compare


def output(name: str):
    """Our EncoderOutput for the oracle's input, and the mask of its real tokens."""
    given, (model, params) = oracle(name)["input"], imported("hf/bert", name)
    mask = given["attention_mask"] > 0
    pos = np.where(mask, np.arange(mask.shape[1]), -1).astype(np.int32)
    types = given["token_type_ids"].astype(np.int32) if "token_type_ids" in given else None
    return jax.jit(model.apply)({"params": params}, given["input_ids"].astype(np.int32), pos, types), mask


@pytest.mark.parametrize(("name", "pairs"), [
    ("bert", {"logits": "logits"}), ("bert_base", {"hidden": "last_hidden_state", "pooled": "pooler"}),
])  # fmt: skip
def test_outputs(name, pairs):
    ours, mask = output(name)
    for own, theirs in pairs.items():
        got, wanted = np.asarray(getattr(ours, own)), oracle(name)["output"][theirs]
        got, wanted = (got[mask], wanted[mask]) if wanted.ndim == 3 else (got, wanted)
        assert compare.error(got, wanted) < 1e-5, own
    assert not np.asarray(ours.hidden)[~mask].any()


@pytest.mark.parametrize("name", ("bert", "bert_base"))
def test_round_trip(name):
    """Bits and names are equal; tied tensors are written once."""
    parts, (model, params) = oracle(name), imported("hf/bert", name)
    exported = convert.to_state_dict("hf/bert", model, params)
    twice = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    assert exported.keys() == parts["param"].keys() - twice
    for key, value in exported.items():
        np.testing.assert_array_equal(value, parts["param"][key], err_msg=key, strict=True)
    again_model, again = convert.from_state_dict("hf/bert", convert.describe("hf/bert", model), exported)
    assert again_model == model
    jax.tree.map(np.testing.assert_array_equal, again, params)
