"""Longformer and BigBird equal transformers'; what cannot be read or written is refused."""

import jax
import numpy as np
import pytest
from helpers.convert import check_round_trip, imported, oracle

import jaxseq
from jaxseq import convert
from jaxseq.convert.sources import hf_big_bird, hf_longformer
from jaxseq.errors import UserError
from jaxseq.models import _block_attention
from jaxseq.testing import compare

TIED = {
    "longformer": ("lm_head.decoder.weight", "lm_head.decoder.bias"),
    "big_bird": ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"),
}


def given(name: str):
    """(tokens, pos, mask of the real tokens)"""
    parts = oracle(name)["input"]
    mask = parts["attention_mask"] > 0
    return parts["input_ids"].astype(np.int32), np.where(mask, np.arange(mask.shape[1]), -1).astype(np.int32), mask


@pytest.mark.parametrize("marked", [True, False])
def test_longformer(marked):
    tokens, pos, mask = given("longformer")
    model, params = imported("hf/longformer", "longformer")
    marks = oracle("longformer")["input"]["global_attention_mask"] > 0 if marked else None
    got = jax.jit(model.apply)({"params": params}, tokens, pos, global_mask=marks)
    wanted = oracle("longformer")["output"]
    assert compare.error(got.logits[mask], wanted["logits" if marked else "logits_no_global"][mask]) < 1e-5
    if marked:
        assert compare.error(got.hidden[mask], wanted["hidden_2"][mask]) < 1e-5


def rows(random: str):
    """The logits of the oracle's row without padding, with and without `pos`."""
    tokens, pos, _ = given("big_bird")
    model, params = imported("hf/big_bird", "big_bird")
    apply = jax.jit(model.clone(random=random).apply)
    return [apply({"params": params}, tokens[:1], *more).logits for more in ((), (pos[:1],))]


def test_big_bird_in_evaluation():
    for got in rows("first"):
        assert compare.error(got, oracle("big_bird")["output"]["logits"][:1]) < 1e-5


def test_big_bird_with_transformers_random_blocks(monkeypatch):
    """The blocks that numpy drew for the oracle, in place of ours."""
    tables = [oracle("big_bird")["input"][f"rand_attn_{layer}"] for layer in range(2)]
    drawn_LHIA = np.pad(np.stack(tables), ((0, 0), (0, 0), (1, 1), (0, 0)))  # the first and the last block draw none
    monkeypatch.setattr(_block_attention, "draw", lambda picks, layer, head, i, n: jax.numpy.asarray(drawn_LHIA)[layer, head, i])
    for got in rows("drawn"):
        assert compare.error(got, oracle("big_bird")["output"]["logits_random"][:1]) < 1e-5


@pytest.mark.parametrize("name", TIED)
def test_round_trip(name):
    check_round_trip(f"hf/{name}", name, TIED[name])


@pytest.mark.parametrize(
    ("source", "name", "change", "message"),
    [
        (hf_longformer, "longformer", {"attention_window": [8, 4]}, "one even attention_window"),
        (hf_longformer, "longformer", {"attention_window": 7}, "one even attention_window"),
        (hf_longformer, "longformer", {"attention_window": "all"}, "attention_window of the config is 'all'"),
        (hf_longformer, "longformer", {"architectures": ["LongformerForMultipleChoice"]}, "reads no LongformerForMultipleChoice"),
        (hf_longformer, "longformer", {"hidden_act": "relu"}, "hidden_act='gelu'"),
        (hf_big_bird, "big_bird", {"attention_type": "original_full"}, "attention_type='block_sparse'"),
        (hf_big_bird, "big_bird", {"rescale_embeddings": True}, "rescale_embeddings=False"),
        (hf_big_bird, "big_bird", {"block_size": 0}, "block_size of the config is 0"),
        (hf_big_bird, "big_bird", {"architectures": ["BigBirdForQuestionAnswering"]}, "reads no BigBirdForQuestionAnswering"),
    ],
)
def test_what_cannot_be_read_is_refused(source, name, change, message):
    with pytest.raises(UserError, match=message) as caught:
        source.config(oracle(name)["config"] | change)
    assert "\n" not in str(caught.value)


def test_a_model_that_would_change_in_transformers_is_not_written(tmp_path):
    """There, random blocks are the first block in evaluation; and no sparse encoder is a BERT."""
    model, params = imported("hf/big_bird", "big_bird")
    for source in ("hf/big_bird", "hf/bert"):
        with pytest.raises(UserError):
            jaxseq.save_pretrained(tmp_path, model.clone(random="drawn"), params, source=source)
    with pytest.raises(UserError):
        jaxseq.save_pretrained(tmp_path, model, params, source="hf/bert")


def test_the_number_of_global_tokens_travels():
    model, params = imported("hf/longformer", "longformer")
    marked = model.clone(global_tokens=3)
    theirs = convert.describe("hf/longformer", marked)
    assert convert.from_state_dict("hf/longformer", theirs, convert.to_state_dict("hf/longformer", marked, params))[0] == marked
