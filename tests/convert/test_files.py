"""Checkpoint files: what is read from each format, and the errors."""

import json

import jax
import numpy as np
import pytest
from helpers.convert import imported, oracle
from helpers.torch_file import call, save, state_dict, tensor
from safetensors.numpy import load_file, save_file

import jaxseq
from jaxseq import UserError, convert
from jaxseq.convert import _files, _table, _torch


def folder(path, tensors=None):
    """The oracles' Llama as a folder."""
    parts = oracle("llama")
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(parts["config"]))
    save_file(dict(tensors or parts["param"]), path / "model.safetensors")
    return path


def equal(got, wanted):
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_folder_and_back(tmp_path):
    model, params = jaxseq.from_pretrained(folder(tmp_path / "in"))
    equal(params, imported("hf/llama", "llama")[1])
    assert jaxseq.save_pretrained(tmp_path / "out", model, params) == "hf/llama"
    written = load_file(tmp_path / "out" / "model.safetensors")
    equal(written, oracle("llama")["param"])
    equal(jaxseq.from_pretrained(tmp_path / "out")[1], params)


def test_shards(tmp_path, monkeypatch):
    model, params = imported("hf/llama", "llama")
    monkeypatch.setattr(_files, "SHARD_BYTES", 20_000)
    jaxseq.save_pretrained(tmp_path, model, params)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}
    assert set(json.loads((tmp_path / _files.INDEX).read_text())["weight_map"]) == set(oracle("llama")["param"])
    equal(jaxseq.from_pretrained(tmp_path)[1], params)
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(UserError, match="names files that are not there: .*model-00002-of"):
        jaxseq.from_pretrained(tmp_path)


def test_wrong_tensors_are_listed_by_name(tmp_path):
    tensors = dict(oracle("llama")["param"])
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.2.mlp.up_proj.weight"] = np.zeros(3, np.float32)
    tensors["lm_head.weight"] = np.zeros((5, 32), np.float32)
    with pytest.raises(UserError) as caught:
        jaxseq.from_pretrained(folder(tmp_path / "wrong", tensors))
    for part in (
        "missing (1): model.layers.1.mlp.up_proj.weight",
        "unexpected (1): model.layers.2.mlp.up_proj.weight",
        "mis-shaped (1): lm_head.weight is (5, 32), wanted (61, 32)",
    ):
        assert part in str(caught.value)


def test_untied_values_of_a_tied_checkpoint_are_refused():
    parts = oracle("llama")
    with pytest.raises(UserError, match="tied"):
        convert.from_state_dict("hf/llama", parts["config"] | {"tie_word_embeddings": True}, parts["param"])
    tied = parts["param"] | {"lm_head.weight": parts["param"]["model.embed_tokens.weight"]}
    model, _ = convert.from_state_dict("hf/llama", parts["config"] | {"tie_word_embeddings": True}, tied)
    assert model.tied


def test_dtype_and_mesh_are_the_callers(tmp_path):
    mesh = jax.make_mesh((1, 1), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    model, params = jaxseq.from_pretrained(folder(tmp_path / "in"), dtype="bfloat16", mesh=mesh)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    assert {leaf.sharding.mesh for leaf in jax.tree.leaves(params)} == {mesh}
    four = jax.sharding.AbstractMesh((2, 2), ("fsdp", "tensor"))
    kernel = convert.abstract(model, four)["blocks_0"]["swiglu"]["up"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")


def test_torch_file(tmp_path):
    parts = oracle("llama")
    (tmp_path / "config.json").write_text(json.dumps(parts["config"]))
    path = state_dict(tmp_path / "pytorch_model.bin", parts["param"])
    for place in (path, tmp_path):
        equal(jaxseq.from_pretrained(place)[1], imported("hf/llama", "llama")[1])


def test_torch_slices(tmp_path):
    flat = np.arange(24, dtype=np.float32)
    content = {
        "whole": tensor("0", flat, (4, 6)),
        "transposed": tensor("0", flat, (6, 4), (1, 6)),
        "nested": {"part": tensor("0", flat, (2, 3), (6, 1), start=7)},
        "note": "text",
    }
    tensors = _torch.open(save(tmp_path / "a.pth", content, {"0": flat}))
    assert set(tensors) == {"whole", "transposed", "nested.part"}
    np.testing.assert_array_equal(tensors["transposed"], flat.reshape(4, 6).T)
    np.testing.assert_array_equal(tensors["nested.part"], flat.reshape(4, 6)[1:3, 1:4])


@pytest.mark.parametrize(
    "content, message",
    [
        ({"a": call("os", "system", "touch hacked")}, "asks for os.system"),
        ({"a": call("builtins", "eval", "1")}, "asks for builtins.eval"),
        ({"a": call("torch.nn.modules.linear", "Linear")}, "only tensors are allowed"),
        ({"a": tensor("0", np.zeros(4, np.float32), (5,))}, "past its storage"),
        ({"a": tensor("0", np.zeros(4, np.float32), (2,), (-1,), start=3)}, "valid storage"),
        ({"a": tensor("0", np.zeros(9, np.float32), (9,))}, "shorter than it says"),
        ({"note": 1}, "no tensors"),
    ],
)
def test_pickles_that_say_more_than_tensors_are_refused(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "a.pth", content, {"0": np.zeros(4, np.float32)})
    with pytest.raises(UserError, match=message):
        _torch.open(path)
    assert not (tmp_path / "hacked").exists()


def test_a_pickle_alone_is_refused(tmp_path):
    (tmp_path / "old.pth").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(UserError, match="torch 1.6"):
        _torch.open(tmp_path / "old.pth")


def test_npz_without_objects(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(3))
    assert _files.read(tmp_path / "a.npz")[1].shape("x") == (3,)
    np.savez(tmp_path / "b.npz", x=np.array([{}]))
    with pytest.raises(UserError, match="plain arrays"):
        _files.read(tmp_path / "b.npz")


def test_gguf(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_uint32("llama.block_count", 3)
    values = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)
    writer.add_tensor("plain", values)
    packed = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("packed", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()
    metadata, tensors = _files.read(tmp_path / "a.gguf")
    assert metadata["llama.block_count"] == 3 and metadata["general.architecture"] == "llama"
    assert tensors.shape("packed") == (2, 64)
    np.testing.assert_array_equal(tensors["plain"], values)
    np.testing.assert_allclose(tensors["packed"], values, atol=np.abs(values).max() / 127)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: path / "nowhere", "there is no"),
        (lambda path: path, "holds no .safetensors"),
        (lambda path: _write(path / "a.onnx", b"x"), "not one of .safetensors"),
        (lambda path: _write(path / "a.safetensors", b"x"), "not a complete safetensors"),
        (lambda path: _write(path / "a.gguf", b"x"), "not a complete GGUF"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        jaxseq.from_pretrained(make(tmp_path))


def _write(path, data):
    path.write_bytes(data)
    return path


def test_config_that_does_not_tell_or_lacks_a_field(tmp_path):
    parts = oracle("llama")
    path = folder(tmp_path / "in")
    (path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="of no known source .no model_type.; give one of these as --source: .*hf/llama"):
        jaxseq.from_pretrained(path)
    with pytest.raises(UserError, match="no field 'hidden_size'"):
        convert.from_state_dict("hf/llama", {k: v for k, v in parts["config"].items() if k != "hidden_size"}, parts["param"])
    with pytest.raises(UserError, match="there is no source 'hf/lama'"):
        convert.from_state_dict("hf/lama", parts["config"], parts["param"])


LARGE = [("llama:7b", "hf/llama"), ("neox:20b", "hf/gpt_neox"), ("mamba:falcon-7b", "hf/falcon_mamba")]


@pytest.mark.parametrize("name, source", LARGE)
def test_published_sizes_by_shapes(name, source):
    """The table of names covers every parameter of a large model, and its config makes a round trip; nothing is allocated."""
    model = jaxseq.build(jaxseq.config(name))
    theirs = convert.describe(source, model)
    module = convert._source(source)
    again = jaxseq.build(module.config(theirs))
    leaves = _table.flatten(convert.abstract(model))
    assert convert.describe(source, again) == theirs and _table.flatten(convert.abstract(again)) == leaves
    _table._complete(module.entries(theirs), leaves)
    assert sum(leaf.size for leaf in leaves.values()) > 6e9
