"""Folders written by transformers' `save_pretrained` (tests/files/published, by make.py there), in one file and in shards:
outputs, and round trips. If torch and transformers are installed, they also open our exports."""

import functools
import json

import jax
import numpy as np
import pytest
from helpers.places import FILES
from safetensors.numpy import load_file

import jaxseq
from jaxseq import convert
from jaxseq.convert import _files
from jaxseq.testing import compare

HERE = FILES / "published"
NAMES = sorted(path.name for path in HERE.iterdir() if path.is_dir())
OURS = {  # their output: the field of ours
    "logits": "logits", "prediction_logits": "logits", "seq_relationship_logits": "classes", "last_hidden_state": "hidden",
    "pooler_output": "pooled",
}  # fmt: skip


@functools.cache
def opened(name: str):
    """(source, model, params)"""
    source, _, _, model, params = convert.open_model(HERE / name)
    return source, model, params


@functools.cache
def saved(name: str) -> dict:
    return load_file(HERE / name / "model.safetensors")


def outputs(name: str) -> dict:
    with np.load(HERE / name / "outputs.npz") as arrays:
        return dict(arrays)


def computed(name: str) -> dict:
    """Our outputs for the same inputs, by field."""
    _, model, params = opened(name)
    given = {key: value if value.dtype == np.float32 else value.astype(np.int32) for key, value in outputs(name).items()}
    apply = jax.jit(model.apply, static_argnames="method")
    if "pixel_values" in given:
        found = apply({"params": params}, given["pixel_values"].transpose(0, 2, 3, 1))
    elif "decoder_input_ids" in given:
        return {"logits": apply({"params": params}, given["input_ids"], given["decoder_input_ids"])}
    elif "global_attention_mask" in given:
        found = apply({"params": params}, given["input_ids"], global_mask=given["global_attention_mask"] > 0)
    elif "token_type_ids" in given:
        found = apply({"params": params}, given["input_ids"], None, given["token_type_ids"])
    elif name == "gpt2_bare":
        return {"hidden": apply({"params": params}, given["input_ids"], method="hidden")[0]}
    else:
        return {"logits": apply({"params": params}, given["input_ids"])[0]}
    fields = found._asdict()
    return fields | ({"logits": fields["classes"]} if fields.get("logits") is None else {})


def test_every_source_of_transformers_has_a_folder():
    assert {opened(name)[0] for name in NAMES} == {name for name in convert.source_names() if name.startswith("hf/")}


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_transformers_own(name):
    ours, theirs = computed(name), outputs(name)
    checked = [key for key in OURS if key in theirs]
    assert checked
    for key in checked:
        assert compare.error(ours[OURS[key]], theirs[key]) < 2e-5, key


@pytest.mark.parametrize("name", NAMES)
def test_shards_hold_the_same(name):
    assert len(list((HERE / name / "shards").glob("*.safetensors"))) >= 4
    config, tensors = _files.read(HERE / name / "shards")
    assert config == _files.read(HERE / name)[0]
    assert set(tensors) == set(saved(name))
    for key, value in saved(name).items():
        np.testing.assert_array_equal(tensors[key], value, err_msg=key, strict=True)


def computed_constants(source: str, model) -> set[str]:
    """Names of tensors in the files that are not parameters."""
    entries = convert._source(source).entries(convert.describe(source, model))
    return {key for entry in entries if not entry.ours for _, names in entry.rows() for key in names}


@pytest.mark.parametrize("name", NAMES)
def test_written_back_with_the_same_names_and_bits(name, tmp_path, monkeypatch):
    source, model, params = opened(name)
    monkeypatch.setattr(_files, "SHARD_BYTES", sum(x.nbytes for x in saved(name).values()) // 3)
    for folder in (tmp_path / "shards", tmp_path / "whole"):
        jaxseq.save_pretrained(folder, model, params, source=source)
        monkeypatch.setattr(_files, "SHARD_BYTES", 4 << 30)
    found = load_file(tmp_path / "whole" / "model.safetensors")
    prefix = "transformer." if name == "gpt2_bare" else ""  # it is exported as a language model
    assert sorted(found) == sorted(prefix + key for key in saved(name))
    constants = computed_constants(source, model)
    for key, value in saved(name).items():
        if key in constants:  # torch's exp may differ by one rounding
            np.testing.assert_array_max_ulp(found[prefix + key], value, 1)
        else:
            np.testing.assert_array_equal(found[prefix + key], value, err_msg=key, strict=True)
    config, tensors = _files.read(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) >= 3
    jax.tree.map(np.testing.assert_array_equal, dict(tensors), found)
    module = convert._source(source)
    assert jaxseq.build(module.config(convert._completed(module, config, tensors))) == model


@pytest.mark.parametrize("name", NAMES)
def test_export_finds_the_source_by_itself(name):
    source, model, _ = opened(name)
    assert convert._holder(model) == source


@pytest.mark.parametrize("name", NAMES)
def test_every_file_that_is_written_is_strict_json(name, tmp_path):
    source, model, _ = opened(name)

    def refuse(text):
        raise AssertionError(text)

    convert.write_config(tmp_path / "config.json", convert.describe(source, model))
    json.loads((tmp_path / "config.json").read_text(), parse_constant=refuse)


@pytest.mark.parametrize("name", NAMES)
def test_transformers_opens_what_is_written(name, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    source, model, params = opened(name)
    jaxseq.save_pretrained(tmp_path, model, params, source=source)
    kind = getattr(transformers, transformers.AutoConfig.from_pretrained(tmp_path).architectures[0])
    theirs, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    wanted = outputs(name)
    given = {key: torch.tensor(value) for key, value in wanted.items() if key not in OURS}
    with torch.no_grad():
        found = theirs.eval()(**given, output_hidden_states=True)
    for key in OURS:
        if key in wanted:
            got = found.hidden_states[-1] if name == "gpt2_bare" else getattr(found, key)
            assert compare.error(got.numpy(), wanted[key]) < 2e-5, key
