"""Adapters in PEFT's layout."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxseq
from jaxseq import UserError, convert, weights
from jaxseq.train import structure

FIELDS = {
    "hf/llama": ("llama", {"model.stack": "2*(attention swiglu)", "model.attention.heads": 4, "model.attention.kv_heads": 2}),
    "hf/qwen2": ("llama", {"model.stack": "2*(attention swiglu)", "model.attention.heads": 4, "model.attention.bias": True,
                           "model.attention.output_bias": False}),
    "hf/mamba": ("mamba", {"model.stack": "2*(mamba)", "train.lora_targets": "in/,x/,dt/"}),  # PEFT refuses its out_proj
}  # fmt: skip


def adapted(source: str, magnitude: bool = False, **more):
    """(model, base parameters, parameters with adapters that are not zero)."""
    name, fields = FIELDS[source]
    lora = {"train.lora_rank": 3, "train.lora_alpha": 5.0, "train.lora_magnitude": magnitude}
    config = jaxseq.config(name, **{"model.width": 32, "model.vocab": 50} | fields | lora | more)
    model = jaxseq.build(config)
    base = model.init(jax.random.key(0))["params"]
    params = structure.adapt(base, structure.boxed(config, model)["params"], jax.random.key(1))
    keys = iter(jax.random.split(jax.random.key(2), 200))
    trained, frozen = weights.parted(params)
    trained = jax.tree.map(lambda x: x + 0.03 * jax.random.normal(next(keys), x.shape), trained)
    return model, base, weights.joined(trained, frozen)


@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("source", FIELDS)
def test_base_and_adapter_are_the_merged_model(source, magnitude, tmp_path):
    """PEFT's equations: W + alpha / r B A; for DoRA each row is divided by its norm and multiplied by the magnitude."""
    model, base, params = adapted(source, magnitude)
    assert convert.save_adapter(tmp_path, model, params, source) == source
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    found = load_file(tmp_path / "adapter_model.safetensors")
    old, new = (convert.to_state_dict(source, model, tree) for tree in (base, params))
    changed = 0
    for name, w_OI in old.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" in found:
            w_OI = w_OI + config["lora_alpha"] / config["r"] * found[f"{key}.lora_B.weight"] @ found[f"{key}.lora_A.weight"]
            if magnitude:
                w_OI *= (found[f"{key}.lora_magnitude_vector"] / np.linalg.norm(w_OI, axis=1))[:, None]
            changed += 1
            assert name.removesuffix(".weight").rpartition(".")[2] in config["target_modules"]
        np.testing.assert_allclose(w_OI, new[name], rtol=1e-4, atol=1e-5)
    assert changed == len(found) / (3 if magnitude else 2) and changed >= 6


def test_fused_matrices_are_refused(tmp_path):
    config = jaxseq.config("gpt2", **{"model.width": 32, "model.stack": "1*(attention mlp)", "train.lora_rank": 2})
    model = jaxseq.build(config)
    params = structure.adapt(model.init(jax.random.key(0))["params"], structure.boxed(config, model)["params"], jax.random.key(1))
    with pytest.raises(UserError, match="export without --adapter, which merges them"):
        convert.save_adapter(tmp_path, model, params, "hf/gpt2")


def test_plain_weights_have_no_adapter(tmp_path):
    model, base, _ = adapted("hf/llama")
    with pytest.raises(UserError, match="these weights have no adapters"):
        convert.save_adapter(tmp_path, model, base, "hf/llama")


@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("source", FIELDS)
def test_peft_computes_the_same_logits(source, magnitude, tmp_path):
    """Skipped unless torch, transformers and peft are installed."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    model, base, params = adapted(source, magnitude)
    convert.save_pretrained(tmp_path / "base", model, base, source)
    convert.save_adapter(tmp_path / "adapter", model, params, source)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    tokens = np.arange(24).reshape(2, 12) % 50
    with torch.no_grad():
        wanted = theirs(torch.tensor(tokens)).logits.numpy()
    ours = model.apply({"params": params}, jnp.asarray(tokens))[0]
    np.testing.assert_allclose(ours, wanted, atol=1e-5 * max(1, np.abs(wanted).max()))
    before = model.apply({"params": base}, jnp.asarray(tokens))[0]
    assert np.abs(before - wanted).max() > 1e-2
