"""T5, T5 v1.1 and Switch Transformers equal transformers', at once and step by step; round trips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.convert import imported, oracle

from jaxseq import convert
from jaxseq.testing import compare

SOURCES = {"t5": "hf/t5", "t5v1_1": "hf/t5", "switch": "hf/switch_transformers"}
TIED = {"lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}


def given(name: str):
    """(model, variables, source, source_pos, tokens, the oracle's outputs)"""
    parts, (model, params) = oracle(name), imported(SOURCES[name], name)
    mask = parts["input"]["attention_mask"]
    source_pos = np.where(mask > 0, np.arange(mask.shape[1]), -1).astype(np.int32)
    source, tokens = (parts["input"][key].astype(np.int32) for key in ("input_ids", "decoder_input_ids"))
    return model, {"params": params}, source, source_pos, tokens, parts["output"]


@pytest.mark.parametrize("name", SOURCES)
def test_logits(name):
    model, variables, source, source_pos, tokens, output = given(name)
    logits = jax.jit(model.apply)(variables, source, tokens, source_pos)
    assert compare.error(logits, output["logits"]) < 1e-5
    encoded = np.asarray(jax.jit(model.apply, static_argnames="method")(variables, source, source_pos, method="encode"))
    real = source_pos >= 0
    assert compare.error(encoded[real], output["encoder_last"][real]) < 1e-5 and not encoded[~real].any()


@pytest.mark.parametrize("name", SOURCES)
def test_decoding_step_by_step(name):
    model, variables, source, source_pos, tokens, output = given(name)
    state = model.apply(variables, source, source_pos, context=tokens.shape[1], method="start")
    step = jax.jit(lambda tokens, state: model.apply(variables, tokens, state, method="decode"))
    found = []
    for t in range(tokens.shape[1]):
        logits, state = step(tokens[:, t : t + 1], state)
        found.append(logits)
    assert compare.error(jnp.concatenate(found, axis=1), output["step"]) < 1e-5


@pytest.mark.parametrize("name", SOURCES)
def test_round_trip(name):
    """Bits and names are equal; tied tensors are written once."""
    source, parts, (model, params) = SOURCES[name], oracle(name), imported(SOURCES[name], name)
    exported = convert.to_state_dict(source, model, params)
    assert exported.keys() == parts["param"].keys() - TIED
    for key, value in exported.items():
        np.testing.assert_array_equal(value, parts["param"][key], err_msg=key, strict=True)
    again_model, again = convert.from_state_dict(source, convert.describe(source, model), exported)
    assert again_model == model
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_whether_the_head_is_tied_is_read_from_the_tensors():
    parts = oracle("t5v1_1")
    own = parts["param"] | {"lm_head.weight": 2 * parts["param"]["lm_head.weight"]}
    model, params = convert.from_state_dict("hf/t5", parts["config"], own)
    assert not model.tied and "head" in params
    tied, _, source, source_pos, tokens, output = given("t5v1_1")
    logits = jax.jit(model.apply)({"params": params}, source, tokens, source_pos)
    assert tied.tied and compare.error(logits, 2 * output["logits"]) < 1e-5
    assert convert.to_state_dict("hf/t5", model, params).keys() == parts["param"].keys() - TIED | {"lm_head.weight"}
