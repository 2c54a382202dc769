"""Llama equals transformers'; round trip."""

import pytest
from helpers.convert import check_logits, check_round_trip


@pytest.mark.parametrize("form", ("recurrent", "parallel", "chunkwise"))
def test_logits(form):
    check_logits("hf/llama", "llama", "input_ids", form, ("logits", "step"))


def test_round_trip():
    check_round_trip("hf/llama", "llama")
