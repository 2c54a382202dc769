"""The Funnel Transformer equals transformers'; round trip."""

import jax
import numpy as np
import pytest
from helpers.convert import check_round_trip, imported, oracle

from jaxseq.convert.sources import hf_funnel
from jaxseq.errors import UserError
from jaxseq.testing import compare


def test_outputs():
    parts, (model, params) = oracle("funnel"), imported("hf/funnel", "funnel")
    given, wanted = parts["input"], parts["output"]
    mask = given["attention_mask"] > 0
    pos = np.where(mask, np.arange(mask.shape[1]), -1).astype(np.int32)
    apply = jax.jit(model.apply)
    got = apply({"params": params}, given["input_ids"].astype(np.int32), pos, given["token_type_ids"].astype(np.int32))
    assert compare.error(got.logits[mask], wanted["logits"][mask]) < 1e-5
    assert compare.error(got.hidden[mask], wanted["hidden_5"][mask]) < 1e-5
    assert not np.asarray(got.hidden)[~mask].any()


def test_round_trip():
    check_round_trip("hf/funnel", "funnel", ("lm_head.weight",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_type": "factorized"}, "attention_type='relative_shift'"),
        ({"pool_q_only": False}, "pool_q_only=True"),
        ({"block_repeats": [1, 1]}, "differ in length"),
        ({"block_sizes": [1, 0, 1]}, "block_sizes of the config is 0"),
        ({"architectures": ["FunnelForQuestionAnswering"]}, "reads no FunnelForQuestionAnswering"),
    ],
)
def test_what_cannot_be_read_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        hf_funnel.config(oracle("funnel")["config"] | change)
