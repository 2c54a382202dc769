"""Exported folders in transformers itself: `pip install torch transformers` beside the tests; without them this is skipped."""

import numpy as np
import pytest
from _convert import oracle

import jaxseq
from jaxseq import convert

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CAUSAL = {
    "llama": "input_ids", "gpt2": "input_ids", "gpt_neox": "input_ids", "mixtral": "input_ids", "mamba": "input_ids",
    "mamba2": "input_ids", "falcon_mamba": "input_ids",
}  # fmt: skip


@pytest.mark.parametrize("name", CAUSAL)
def test_logits_of_an_exported_folder(name, tmp_path):
    parts = oracle(name)
    model, params = convert.from_state_dict(f"hf/{name}", parts["config"], parts["param"])
    assert jaxseq.save_pretrained(tmp_path, model, params, source=f"hf/{name}") == f"hf/{name}"
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokens = np.asarray(parts["input"][CAUSAL[name]], np.int64)
    with torch.no_grad():
        wanted = theirs.eval()(torch.tensor(tokens)).logits.numpy()
    got = np.asarray(model.apply({"params": params}, tokens.astype(np.int32), form="parallel")[0])
    assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()
