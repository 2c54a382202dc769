"""Checkpoint files as lazy mappings {name: array} with `shape(name)`, which reads no numbers; and safetensors folders written."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxseq.errors import UserError

SHARD_BYTES = 4 << 30
INDEX = "model.safetensors.index.json"


class Tensors(Mapping):
    """{name: array}; a subclass has `parts`, {name: whatever finds it}, `shape` and `__getitem__`."""

    def __init__(self, parts: Mapping[str, Any]):
        self.parts = dict(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def shape(self, name: str) -> tuple[int, ...]:
        return np.shape(self[name])

    def __getitem__(self, name: str) -> np.ndarray:
        return self.parts[name]


class Renamed(Tensors):
    """Another mapping under other names: `names` is {new: old}."""

    def __init__(self, tensors: Mapping[str, Any], names: Mapping[str, str]):
        super().__init__(names)
        self.tensors = tensors

    def shape(self, name):
        old = self.parts[name]
        return self.tensors.shape(old) if hasattr(self.tensors, "shape") else np.shape(self.tensors[old])

    def __getitem__(self, name):
        return self.tensors[self.parts[name]]


class SafeTensors(Tensors):
    """Of {name: file}. Each read opens its file anew: pages of a mapping that stays open count as memory."""

    def shape(self, name):
        with _open(self.parts[name]) as file:
            return tuple(file.get_slice(name).get_shape())

    def __getitem__(self, name):
        with _open(self.parts[name]) as file:
            return file.get_tensor(name)


def _open(path: Path):
    import safetensors

    try:
        return safetensors.safe_open(path, "np")
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is no whole safetensors file ({error}); fetch it again") from error


def read(path: str | Path) -> tuple[dict, Mapping[str, Any]]:
    """(config.json's contents, or the metadata of a file that has some, else {}; lazy tensors)."""
    path = Path(path)
    if path.is_dir():
        return _config(path), _folder(path)
    if not path.is_file():
        raise UserError(f"there is no {path}; give a folder with config.json and safetensors, or a checkpoint file")
    config = _config(path.parent)
    if path.suffix == ".safetensors":
        return config, _shards([path])
    if path.suffix in (".pth", ".pt", ".bin", ".ckpt"):
        from jaxseq.convert import _torch

        return config, _torch.open(path)
    if path.suffix == ".gguf":
        from jaxseq.convert import _gguf

        return _gguf.open(path)
    if path.suffix == ".npz":
        return config, _npz(path)
    raise UserError(f"{path} is none of .safetensors, .pth, .pt, .bin, .gguf and .npz; convert it to safetensors")


def _config(folder: Path) -> dict:
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON ({error}); fetch it again") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no JSON object; fetch it again")
    return config


def _folder(folder: Path) -> Mapping[str, Any]:
    if (folder / INDEX).is_file():
        return _indexed(folder, folder / INDEX)
    if files := sorted(folder.glob("*.safetensors")):
        return _shards(files)
    if files := [*sorted(folder.glob("*.bin")), *sorted(folder.glob("*.pth")), *sorted(folder.glob("*.pt"))]:
        from jaxseq.convert import _torch

        return _torch.Storages({name: part for file in files for name, part in _torch.open(file).parts.items()})
    raise UserError(f"{folder} holds no .safetensors, .bin, .pth or .pt file; give the folder of a checkpoint")


def _indexed(folder: Path, index: Path) -> SafeTensors:
    """The files that the index names, which must lie in its folder."""
    try:
        names = json.loads(index.read_text())["weight_map"]
        files = {name: folder / Path(file).name for name, file in names.items()}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no index of safetensors ({error}); fetch it again") from error
    if lost := sorted({str(file) for file in files.values() if not file.is_file()}):
        raise UserError(f"{index} names files that are not there: {', '.join(lost)}; fetch them")
    found = _shards(sorted(set(files.values()))).parts
    if lost := sorted(set(files) - set(found)):
        raise UserError(f"{index} names tensors that its files lack: {', '.join(lost[:12])}; fetch them again")
    return SafeTensors(found)


def _shards(files: Iterable[Path]) -> SafeTensors:
    parts = {}
    for path in files:
        with _open(path) as file:
            parts |= dict.fromkeys(file.keys(), path)
    return SafeTensors(parts)


def _npz(path: Path) -> Tensors:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Tensors({name: arrays[name] for name in arrays})
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is no .npz file of plain arrays ({error}); save it again without objects") from error


def write(folder: Path, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """One model.safetensors, or several of at most SHARD_BYTES with an index; a former checkpoint of the folder goes."""
    from safetensors.numpy import save_file

    for old in (*folder.glob("model*.safetensors"), *folder.glob(INDEX)):
        old.unlink()
    shards: list[list[str]] = []
    part: dict[str, np.ndarray] = {}

    def flush():
        save_file(part, folder / f"model-{len(shards)}.safetensors", metadata={"format": "pt"})
        shards.append(list(part))
        part.clear()

    total = 0
    for name, tensor in tensors:
        if part and sum(x.nbytes for x in part.values()) + tensor.nbytes > SHARD_BYTES:
            flush()
        part[name] = tensor
        total += tensor.nbytes
    flush()
    if len(shards) == 1:
        (folder / "model-0.safetensors").replace(folder / "model.safetensors")
        return
    weight_map = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        (folder / f"model-{i}.safetensors").replace(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
