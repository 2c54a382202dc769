"""Exported folders in transformers itself; skipped unless torch and transformers are installed."""

import numpy as np
import pytest
from helpers.convert import imported, oracle

import jaxseq

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

NAMES = (
    "llama", "gpt2", "gpt_neox", "mixtral", "mamba", "mamba2", "falcon_mamba", "bert", "albert", "vit", "mistral", "qwen2",
    "qwen3", "phi3",
    "gemma", "gemma2", "olmo2", "diffllama", "opt", "lfm2", "qwen3_next", "deepseek_v3", "olmo_hybrid", "minimax", "gpt_oss",
    "recurrent_gemma",
)  # fmt: skip
OTHERS = {"llama3_rope": "hf/llama", "opt_post": "hf/opt"}
SOURCES = {name: f"hf/{name}" for name in NAMES} | OTHERS | {"t5": "hf/t5", "t5v1_1": "hf/t5", "switch": "hf/switch_transformers"}


@pytest.mark.parametrize("name", SOURCES)
def test_an_exported_folder_gives_the_oracles_logits(name, tmp_path):
    parts, (model, params) = oracle(name), imported(SOURCES[name], name)
    assert jaxseq.save_pretrained(tmp_path, model, params, source=SOURCES[name]) == SOURCES[name]
    kind = getattr(transformers, transformers.AutoConfig.from_pretrained(tmp_path).architectures[0])
    theirs, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    given = {key: torch.tensor(value) for key, value in parts["input"].items() if not key.startswith("op_")}
    given["input_ids"] = given.pop("tokens", given.get("input_ids"))
    with torch.no_grad():
        got = theirs.eval()(**{key: value for key, value in given.items() if value is not None}).logits.numpy()
    wanted = parts["output"].get("logits", parts["output"].get("hf_full"))
    assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()
