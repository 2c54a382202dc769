"""Files with false headers: each gives a UserError of one line, quickly, without allocating the claimed size or executing
anything."""

import io
import json
import math
import os
import pickle
import random
import resource
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers.places import FILES
from helpers.torch_file import save, state_dict, tensor

import jaxseq
from jaxseq import UserError, convert
from jaxseq.convert import _files, _formats, _gguf, _torch
from jaxseq.plain_files import json_text, read_json
from jaxseq.train.workdirs import saved_config, write_config

PUBLISHED = FILES / "published"
GROWTH = 500 << 20  # bytes that the process may grow by


@pytest.fixture(autouse=True)
def bounded():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < GROWTH


def refused(path, message=""):
    with pytest.raises(UserError, match=message) as caught:
        convert.open_model(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2000


def copy(path: Path, name: str = "llama") -> Path:
    return shutil.copytree(PUBLISHED / name, path, ignore=shutil.ignore_patterns("shards", "outputs.npz"))


DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DEEP, "nested too deep"), (b"[" * 100_000, "nested too deep|not JSON"), (b"{", "not JSON"), (b"[1]", "no JSON object"),
        (b"\xff\xfe{}", "not JSON"), (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"), (b"", "not JSON"),
    ],
    ids=range(7),
)  # fmt: skip
@pytest.mark.parametrize("name", ("config.json", "model.safetensors.index.json", "adapter_config.json"))
def test_json(name, data, message, tmp_path):
    folder = copy(tmp_path / "in")
    if name != "config.json":
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(data)
    refused(folder, message)


def test_the_config_of_a_workdir_is_read_by_the_same_reader(tmp_path):
    path, config = tmp_path / "config.json", jaxseq.config("mamba2")
    for data in (DEEP, b"\xff", b"[]", b"{"):
        path.write_bytes(data)
        for use in (saved_config, lambda folder: write_config(folder, config)):
            with pytest.raises(UserError) as caught:
                use(tmp_path)
            assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        assert path.read_bytes() == data, "it is not written over"
    path.unlink()
    write_config(tmp_path, config)
    data = json.loads(path.read_text("utf-8"), parse_constant=pytest.fail)
    assert saved_config(tmp_path) == config
    data["model"]["mamba2"]["dt_low"] = math.inf
    path.write_text(json.dumps(data), "utf-8")
    with pytest.raises(UserError, match="dt_low"):
        saved_config(tmp_path)


def test_json_of_a_size_that_no_config_has(tmp_path):
    folder = copy(tmp_path / "in")
    os.truncate(folder / "config.json", 1 << 40)
    refused(folder, "has 1,099,511,627,776 bytes")


def test_numbers_that_json_lacks_are_written_so_that_every_reader_takes_them(tmp_path):
    data = {"a": [math.inf, {"b": -math.inf}], "c": (1.5, None)}
    (tmp_path / "a.json").write_text(text := json_text(data))
    json.loads(text, parse_constant=pytest.fail)
    assert read_json(tmp_path / "a.json") == {"a": [math.inf, {"b": -math.inf}], "c": [1.5, None]}
    assert math.isnan(read_json(_written(tmp_path / "b.json", json_text({"x": math.nan})))["x"])


def _written(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ("model.safetensors", "config.json", "a.safetensors", "a.pth", "a.npz", "a.gguf"))
def test_only_regular_files_are_opened(name, tmp_path):
    folder = copy(tmp_path / "in")
    (folder / "model.safetensors").rename(tmp_path / "kept")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    if name == "config.json":
        (tmp_path / "kept").rename(folder / "model.safetensors")
    refused(folder, "is a pipe|give the file itself")
    refused(folder / name, "is a pipe")
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    refused(folder / name, "is a device|only regular files|not one of")
    refused(folder / "a\0b.safetensors", "there is no file")


def pickled(path: Path, body: bytes) -> Path:
    """A torch file with this pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", body)
        archive.writestr("archive/data/0", bytes(16))
    return path


def _laughs() -> bytes:
    """A dict that contains the same dict twice, forty levels deep."""
    content: dict = {"x": 1}
    for _ in range(40):
        content = {"a": content, "b": content}
    return pickle.dumps(content, 2)


def _itself() -> bytes:
    content: dict = {}
    content["a"] = content
    return pickle.dumps(content, 2)


PICKLES = {
    "memo": b"\x80\x02}r\xff\xff\xff\x7f.",
    "claimed bytes": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    "claimed text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b".",
    "claimed frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"}.",
    "claimed integer": b"\x80\x02\x8b" + struct.pack("<i", 1 << 30) + b".",
    "laughs": _laughs(),
    "itself": _itself(),
    "lists": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "instance": b"\x80\x02(ios\nsystem\n.",
    "object": b"(cos\nsystem\no.",
    "extension": b"\x80\x02\x82\x01.",
    "stack": b"\x80\x020.",
    "not the end": b"\x80\x02}",
    "protocol": b"\x80\xff}.",
    "empty": b"",
}


@pytest.mark.parametrize("name", PICKLES)
def test_torch_descriptions(name, tmp_path):
    with pytest.raises(UserError) as caught:
        _torch.open(pickled(tmp_path / "a.pth", PICKLES[name]))
    assert "\n" not in str(caught.value)


def test_torch_storages_that_lie(tmp_path):
    flat = np.zeros(4, np.float32)
    repeated = save(tmp_path / "repeated.pth", {"a": tensor("0", flat, (1 << 20, 1 << 20), (0, 0))}, {"0": flat})
    with pytest.raises(UserError, match="repeats"):
        _torch.open(repeated)
    state_dict(tmp_path / "plain.pth", {"a": np.zeros(1 << 16, np.float32)})
    with zipfile.ZipFile(tmp_path / "plain.pth") as archive, zipfile.ZipFile(tmp_path / "packed.pth", "w", 8) as packed:
        for info in archive.infolist():
            packed.writestr(info.filename, archive.read(info))
    with pytest.raises(UserError, match="compressed"):
        _torch.open(tmp_path / "packed.pth")
    data = (tmp_path / "plain.pth").read_bytes()
    for end in (10, len(data) // 2, len(data) - 5):
        (tmp_path / "cut.pth").write_bytes(data[:end])
        with pytest.raises(UserError, match="not a complete zip"):
            _torch.open(tmp_path / "cut.pth")


def _npy(shape) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


@pytest.mark.parametrize(
    "data",
    (
        _npy((10**11,)), _npy((-1,)), _npy((1 << 62, 1 << 62)), b"garbage", b"", b"\x93NUMPY\x09\x00",
        b"\x93NUMPY\x01\x00\xff\xff(", b"\x93NUMPY\x01\x00\x0a\x00{'descr': (\n",
    ),
    ids=range(8),
)  # fmt: skip
def test_npz(data, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", data)
    refused(tmp_path / "a.npz", "not an .npz file of plain arrays")
    (tmp_path / "b.npz").write_bytes(data)
    refused(tmp_path / "b.npz", "not an .npz file of plain arrays")


def test_npz_that_grows_a_thousand_times(tmp_path, monkeypatch):
    monkeypatch.setattr(_formats, "NPZ_BYTES", 1 << 20)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(1 << 19, np.float32))
    refused(tmp_path / "a.npz", "more than the limit of 1,048,576")


def _gguf_file(*parts) -> bytes:
    return b"GGUF" + struct.pack("<I", 3) + b"".join(parts)


def _key(kind: int, *rest) -> bytes:
    return struct.pack("<Q", 1) + b"k" + struct.pack("<I", kind) + b"".join(rest)


GGUFS = (
    b"GGUF", b"GGUX" + bytes(40), _gguf_file(struct.pack("<QQ", 1 << 60, 0)), _gguf_file(struct.pack("<QQ", 0, 1 << 60)),
    _gguf_file(struct.pack("<QQ", 0, 1), struct.pack("<Q", 1 << 60)),
    _gguf_file(struct.pack("<QQ", 0, 1), _key(9, struct.pack("<IQ", 4, 1 << 60))),
    _gguf_file(struct.pack("<QQ", 0, 1), _key(9, struct.pack("<IQ", 8, 1 << 40))),
    _gguf_file(struct.pack("<QQ", 0, 1), _key(9, struct.pack("<IQ", 9, 1))),
    _gguf_file(struct.pack("<QQ", 0, 1), _key(77)),
    _gguf_file(struct.pack("<QQ", 1, 0), struct.pack("<Q", 1), b"t", struct.pack("<I", 1 << 30)),
)  # fmt: skip


@pytest.mark.parametrize("data", GGUFS, ids=range(len(GGUFS)))
def test_gguf(data, tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(UserError, match="not a complete GGUF"):
        _gguf.open(tmp_path / "a.gguf")


VALUES = (0, -1, 1, 3, 1 << 20, 10**9, 10**30, 0.5, -0.5, 1e300, math.nan, math.inf, True, False, None, "x", "", [], [3], {})
FAMILIES = ("llama", "gpt2", "gpt_neox", "mixtral", "mamba2", "mamba", "bert_masked", "vit", "t5", "switch")


def fuzz(count: int, seed: int) -> None:
    """Configs with one field changed: they describe the same tensors, or are refused in one line."""
    rng = random.Random(seed)
    for _ in range(count):
        config, tensors = _files.read(PUBLISHED / rng.choice(FAMILIES))
        source = convert.open_source(Path(next(iter(tensors.parts.values()))[0]).parent)[0]
        name = rng.choice(sorted(config))
        changed = config | {name: rng.choice(VALUES)}
        try:
            convert.from_state_dict(source, changed, tensors)
        except UserError as error:
            assert "\n" not in str(error), changed[name]
        except Exception as error:
            raise AssertionError(f"{source}: {name}={changed[name]!r}") from error


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("llama", "hidden_size", "16", "hidden_size of the config is '16'; it must be an integer from 1"),
        ("llama", "num_hidden_layers", 10**9, "num_hidden_layers of the config is 1000000000; it must be an integer"),
        ("llama", "rms_norm_eps", math.nan, "rms_norm_eps of the config is nan"),
        ("llama", "rope_parameters", {"rope_theta": -1}, "rope_theta of the config is -1"),
        ("llama", "intermediate_size", 1 << 20, "more than all tensors together"),
        ("vit", "image_size", 1 << 20, "more than all tensors together"),  # no image of this size is allocated
        ("llama", "num_hidden_layers", 9_999, "a model of 89,994 tensors, but there are 21"),
        ("llama", "tie_word_embeddings", "yes", "must be true or false"),
        ("mamba", "time_step_rank", {}, "must be an integer from 1 to 65536, or 'auto'"),
        ("gpt2", "n_head", 3, "gpt2|fit|mis-shaped|multiple|divide"),
    ],
)
def test_what_is_said_of_a_field(name, field, value, message):
    config, tensors = _files.read(PUBLISHED / name)
    with pytest.raises(UserError, match=message):
        convert.from_state_dict(f"hf/{name}", config | {field: value}, tensors)


@pytest.mark.parametrize("seed", range(4))
def test_configs_of_other_values(seed):
    fuzz(15, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
def test_configs_of_other_values_at_length(seed):
    fuzz(100, seed)
