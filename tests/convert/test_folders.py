"""Folders with weights: which files are the checkpoint, and errors if there is none or more than one."""

import json
import logging
import os
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers.places import FILES
from helpers.torch_file import state_dict
from safetensors.numpy import load_file, save_file

from jaxseq import UserError, convert
from jaxseq.convert import _files

LLAMA = FILES / "published" / "llama"
X = {"x": np.ones(3, np.float32)}


@pytest.fixture(autouse=True)
def heard(monkeypatch):
    """Lets caplog see jaxseq's log, which does not propagate to the root logger."""
    monkeypatch.setattr(logging.getLogger("jaxseq"), "propagate", True)


def copy(path: Path, shards: bool = False) -> Path:
    shutil.copytree(LLAMA / "shards" if shards else LLAMA, path, ignore=shutil.ignore_patterns("shards", "outputs.npz"))
    return path


def other(path: Path, name: str, value: float = 7.0) -> None:
    """A file next to the checkpoint with the same names and other values."""
    (path / name).parent.mkdir(exist_ok=True)
    tensors = {key: np.full_like(x, value) for key, x in load_file(LLAMA / "model.safetensors").items()}
    (save_file if name.endswith(".safetensors") else lambda t, p: state_dict(p, t))(tensors, path / name)


def check(path: Path) -> None:
    """The values read are those of the checkpoint."""
    _, tensors = _files.read(path)
    wanted = load_file(LLAMA / "model.safetensors")
    assert set(tensors) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(tensors[name], value, err_msg=name)


@pytest.mark.parametrize("shards", (False, True))
@pytest.mark.parametrize(
    "name", ("backup.safetensors", "model-old.safetensors", "z.safetensors", "pytorch_model.bin", "optimizer.pt", "a.pt",
             "training_args.bin", "rng_state.pth", "consolidated.00.pth", "adapter_model.safetensors", "._model.safetensors"),
)  # fmt: skip
def test_a_file_beside_the_checkpoint_is_not_read(name, shards, tmp_path):
    other(copy(tmp_path / "in", shards), name)
    check(tmp_path / "in")


def test_each_tensor_comes_from_the_file_that_the_index_names(tmp_path):
    """Shards that also contain other tensors, such as those of an earlier save."""
    folder = copy(tmp_path / "in", shards=True)
    index = json.loads((folder / _files.INDEX).read_text())["weight_map"]
    last = max(index.values())
    stale = {name: np.zeros_like(x) for name, x in load_file(LLAMA / "model.safetensors").items()}
    save_file(stale | load_file(folder / last), folder / last)
    check(folder)


def test_of_two_checkpoints_the_one_that_transformers_takes(tmp_path, caplog):
    folder = copy(tmp_path / "in")
    for path in copy(tmp_path / "shards", shards=True).iterdir():
        if path.suffix == ".safetensors":
            save_file({name: x + 1 for name, x in load_file(path).items()}, path)
        shutil.copy(path, folder)
    with caplog.at_level(logging.WARNING):
        check(folder)
    assert "model.safetensors is read, as transformers would; left out: model.safetensors.index.json" in caplog.text


def test_torch_shards_by_their_index(tmp_path):
    folder, tensors = copy(tmp_path / "in"), load_file(LLAMA / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, part in files.items():
        state_dict(folder / file, {name: tensors[name] for name in part})
    check(folder)  # the names of a complete set are enough
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    check(folder)
    os.remove(folder / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(UserError, match="names files that are not there: .*00002-of-00002.bin"):
        _files.read(folder)
    os.remove(folder / "pytorch_model.bin.index.json")
    with pytest.raises(UserError, match="lacks pytorch_model-00002-of-00002.bin"):
        _files.read(folder)


def test_a_single_file_of_any_name(tmp_path):
    folder = copy(tmp_path / "in")
    (folder / "model.safetensors").rename(folder / "epoch3.safetensors")
    other(folder, "optimizer.bin")
    check(folder)


def _several(path):
    for n in (9, 10):
        other(path, f"rwkv-{n}.pth")


def _nested(path):
    save_file(X, _made(path / "checkpoint-500") / "model.safetensors")


def _made(path):
    path.mkdir()
    return path


def _adapter(path):
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "owner/base"}))
    save_file(X, path / "adapter_model.safetensors")


def _index(weight_map):
    return lambda path: (path / _files.INDEX).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_several, "several checkpoints and no index that says which to read: rwkv-10.pth, rwkv-9.pth; give one of these files"),
        (lambda path: [other(path, f"{n}.safetensors") for n in "ab"], "several checkpoints and no index"),
        (lambda path: other(path, "optimizer.pt"), "holds no .safetensors"),
        (_nested, "give one of its folders: checkpoint-500"),
        (_adapter, "LORA weights, which change a base model .owner/base.*merge_and_unload"),
        (_index({"x": "../x.safetensors"}), "names a file outside its folder"),
        (_index({"x": 5}), "no weight_map"),
        (_index([]), "no weight_map"),
        (_index({"x": "gone.safetensors"}), "names files that are not there: .*gone.safetensors"),
        (lambda path: (path / "a.gguf").write_bytes(b"GGUF"), "give the file itself: .*a.gguf"),
    ],
)
def test_what_is_no_checkpoint_or_several_is_refused(make, message, tmp_path):
    make(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        convert.open_source(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prefix", ("module.", "_orig_mod.", "_orig_mod.module."))
def test_what_training_puts_before_every_name(prefix, tmp_path, caplog):
    folder = copy(tmp_path / "in")
    tensors = {prefix + name: x for name, x in load_file(LLAMA / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    check(folder)
    assert prefix.partition(".")[0] in caplog.text
    assert "lm_head.weight" in convert._files.unwrapped(tensors)


def save_changed(path: Path, change) -> Path:
    folder = copy(path)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def _int8(tensors):
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].astype(np.int8)


def _int8_and_scale(tensors):
    _int8(tensors)
    tensors["model.layers.0.mlp.up_proj.weight_scale"] = np.ones(3, np.float32)


def _fp8(tensors):
    tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(ml_dtypes.float8_e4m3fn)


def _lora(tensors):
    tensors["base_model.model.q_proj.lora_A.weight"] = np.ones((2, 3), np.float32)


def _longer(tensors):
    for name in list(tensors):
        tensors[f"student.{name}"] = tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_int8, "packed or quantised .1 of them: model.layers.0.mlp.up_proj.weight is int8"),
        (_int8_and_scale, "packed or quantised"),
        (_fp8, "packed or quantised .1 of them: lm_head.weight is F8_E4M3"),
        (_lora, "holds LoRA weights .*lora_A.*merge_and_unload"),
        (_longer, "they are there as student.…: leave that prefix out"),
    ],
)
def test_tensors_that_are_no_weights_are_called_what_they_are(change, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        convert.open_model(save_changed(tmp_path / "in", change))
    assert "\n" not in str(caught.value)


def test_a_quantised_config_is_refused_before_its_tensors(tmp_path):
    folder = copy(tmp_path / "in")
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="quantised .quantization_config: 'gptq'"):
        convert.open_source(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "minicpm"}, "model_type='minicpm', which no source reads; the nearest is hf/llama, which has 12 of"),
        ({"model_type": "gpt_neo"}, "model_type='gpt_neo', which no source reads; the nearest is hf/llama"),
        ({"model_type": None}, "of no known source .no model_type."),
    ],
)
def test_an_unknown_model_type_is_named_with_what_comes_nearest(change, message, tmp_path):
    folder = copy(tmp_path / "in")
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | change))
    with pytest.raises(UserError, match=message):
        convert.open_source(folder)


def test_a_source_that_the_files_contradict_is_said(tmp_path, caplog):
    convert.open_source(copy(tmp_path / "in"), "hf/gpt2")
    assert "looks like hf/llama and is read as hf/gpt2" in caplog.text


REFUSED = [
    ("hf/llama", "llama", {"rope_scaling": {"rope_type": "longrope", "factor": 8.0}}, "no longrope rotary .*rope_scaling=.*8.0"),
    ("hf/llama", "llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "tuned": True}}, "linear rotary .*tuned=True"),
    ("hf/llama", "llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=1.0, and .*=0.5"),
    ("hf/llama", "llama", {"mlp_bias": True}, "mlp_bias=False, and this config has mlp_bias=True"),
    ("hf/llama", "llama", {"hidden_act": "gelu"}, "hidden_act='silu', and this config has hidden_act='gelu'"),
    ("hf/mistral", "mistral", {"layer_types": ["full_attention"]}, "layer_types=None, and this config has layer_types="),
    ("hf/phi3", "phi3", {"rope_parameters": {"rope_type": "longrope"}}, "no longrope rotary positions"),
    ("hf/gemma", "gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
    ("hf/opt", "opt_350m", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine=False"),
    ("hf/qwen2", "qwen2", {"layer_types": ["chunked_attention"] * 2}, "no layer_types='chunked_attention'; it reads: full_att"),
    ("hf/qwen3_next", "qwen3_next", {"attention_bias": True}, "attention_bias=True"),
    ("hf/deepseek_v3", "deepseek_v3", {"scoring_func": "softmax"}, "scoring_func='softmax'"),
    ("hf/gemma2", "gemma2", {"hidden_activation": "gelu"}, "hidden_activation='gelu'"),
    ("hf/gpt_oss", "gpt_oss", {"rope_scaling": {"rope_type": "dynamic"}}, "no dynamic rotary positions"),
    ("hf/minimax", "minimax", {"mlp_alpha_factor": 2.0}, "mlp_alpha_factor=1.5, and this config has mlp_alpha_factor=2.0"),
    ("hf/recurrent_gemma", "recurrent_gemma", {"hidden_activation": "relu"}, "hidden_activation='relu'"),
    ("hf/gpt2", "gpt2", {"activation_function": "quick_gelu"}, "no activation_function='quick_gelu'; it reads: gelu_new"),
    ("hf/bert", "bert", {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
    ("hf/vit", "vit", {"qkv_bias": False}, "qkv_bias=True, and this config has qkv_bias=False"),
    ("hf/vit", "vit_bare", {"add_pooling_layer": True, "pooler_act": "relu"}, "pooler_act='relu'"),
    ("hf/mamba", "mamba", {"use_bias": True}, "use_bias=True"),
    ("hf/t5", "t5", {"feed_forward_proj": "gated-relu"}, "no feed_forward_proj='gated-relu'"),
    ("hf/switch_transformers", "switch", {"router_bias": True}, "router_bias=True"),
    ("torchscale/retnet", None, {"deepnorm": True}, "deepnorm=True"),
    ("stripedhyena", None, {"smeared_gqa": True}, "smeared_gqa=True"),
    ("torch/lstm", None, {"proj_size": 3}, "proj_size=3"),
    ("sru", None, {"layer_norm": True}, "layer_norm=True"),
    ("gguf/llama", None, {"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type='yarn'"),
    ("gguf/llama", None, {"llama.expert_count": 8}, "llama.expert_count=8"),
]


@pytest.mark.parametrize(("source", "name", "change", "message"), REFUSED)
def test_refusals_name_the_field_and_its_value(source, name, change, message):
    config = _files.read(LLAMA.parent / name)[0] if name else {}
    with pytest.raises(UserError, match=message) as caught:
        convert._source(source).config(config | change)
    assert "differs" not in str(caught.value)
