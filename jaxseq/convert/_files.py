"""Checkpoint files as lazy mappings {name: array} with `shape(name)` and `dtype(name)`, which read no numbers; and safetensors
folders written."""

import logging
import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxseq.errors import UserError
from jaxseq.plain_files import json_text, read_object, regular

SHARD_BYTES = 4 << 30
INDEX = "model.safetensors.index.json"
NPZ_BYTES = 2 << 30  # of all arrays together, which are small models'
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".gguf", ".npz")
log = logging.getLogger(__name__)


class Tensors(Mapping):
    """{name: array}; a subclass has `parts`, {name: whatever finds it}, `shape`, `dtype` and `__getitem__`."""

    def __init__(self, parts: Mapping[str, Any]):
        self.parts = dict(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def __contains__(self, name: object) -> bool:
        return name in self.parts  # a mapping's own would read the tensor

    def shape(self, name: str) -> tuple[int, ...]:
        return np.shape(self[name])

    def dtype(self, name: str) -> str:
        """numpy's name of it, or the file's own where numpy has none."""
        return np.asarray(self[name]).dtype.name

    def __getitem__(self, name: str) -> np.ndarray:
        return self.parts[name]


def plain(tensors: Mapping[str, Any]) -> Tensors:
    """Arrays in memory with the methods of files."""
    return tensors if isinstance(tensors, Tensors) else Tensors(tensors)


class Renamed(Tensors):
    """Another mapping under other names: `names` is {new: old}."""

    def __init__(self, tensors: Mapping[str, Any], names: Mapping[str, str]):
        super().__init__(names)
        self.tensors = plain(tensors)

    def shape(self, name):
        return self.tensors.shape(self.parts[name])

    def dtype(self, name):
        return self.tensors.dtype(self.parts[name])

    def __getitem__(self, name):
        return self.tensors[self.parts[name]]


_SAFETENSORS_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32", "I16": "int16",
    "I8": "int8", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64", "BOOL": "bool",
}  # fmt: skip


class SafeTensors(Tensors):
    """Of {name: (file, shape, dtype)}. Each read opens its file anew: pages of a mapping that stays open count as memory."""

    def shape(self, name):
        return self.parts[name][1]

    def dtype(self, name):
        return self.parts[name][2]

    def __getitem__(self, name):
        path, _, dtype = self.parts[name]
        if dtype not in _SAFETENSORS_DTYPES.values():
            raise UserError(f"{name} of {path} is {dtype}, which are no weights without their scales; save it in bfloat16")
        with _open(path) as file:
            return file.get_tensor(name)


def _open(path: Path):
    import safetensors

    try:
        return safetensors.safe_open(regular(path), "np")
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is no whole safetensors file ({error}); fetch it again") from error


def safetensors(path: Path) -> SafeTensors:
    parts = {}
    with _open(path) as file:
        for name in file.keys():  # noqa: SIM118 (it is no mapping)
            tensor = file.get_slice(name)
            dtype = tensor.get_dtype()
            parts[name] = path, tuple(tensor.get_shape()), _SAFETENSORS_DTYPES.get(dtype, dtype)
    return SafeTensors(parts)


def read(path: str | Path) -> tuple[dict, Tensors]:
    """(config.json's contents, or the metadata of a file that has some, else {}; lazy tensors)."""
    path = Path(path)
    if path.is_dir():
        from jaxseq.convert import _folders

        return _config(path), unwrapped(_folders.tensors(path))
    path = regular(path)
    if path.suffix == ".gguf":
        from jaxseq.convert import _gguf

        return _gguf.open(path)
    return _config(path.parent), unwrapped(one(path))


def one(path: Path) -> Tensors:
    """The tensors of one file, by its suffix."""
    if path.suffix == ".safetensors":
        return safetensors(path)
    if path.suffix in (".pth", ".pt", ".bin", ".ckpt"):
        from jaxseq.convert import _torch

        return _torch.open(regular(path))
    if path.suffix == ".npz":
        return npz(regular(path))
    raise UserError(f"{path} is none of {', '.join(SUFFIXES)}; convert it to safetensors")


def _config(folder: Path) -> dict:
    path = folder / "config.json"
    return read_object(path) if path.exists() else {}


_WRAPPERS = {"_orig_mod.": "torch.compile", "module.": "torch's data parallelism"}


def unwrapped(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without what training puts in front of every name of a model that it wraps."""
    names = {name: name for name in tensors}
    while found := [p for p in _WRAPPERS if names and all(name.startswith(p) for name in names)]:
        log.warning("every name begins with %s, of a model saved inside %s; it is left out", found[0], _WRAPPERS[found[0]])
        names = {name.removeprefix(found[0]): old for name, old in names.items()}
    return tensors if all(new == old for new, old in names.items()) else Renamed(tensors, names)


class Npz(Tensors):
    """Of {name: (file, member, shape, dtype)}."""

    def shape(self, name):
        return self.parts[name][2]

    def dtype(self, name):
        return self.parts[name][3].name

    def __getitem__(self, name):
        path, member, shape, _ = self.parts[name]
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            return np.lib.format.read_array(file, allow_pickle=False).reshape(shape)


def npz(path: Path) -> Npz:
    """The arrays of an .npz file, whose sizes are known before any is read."""
    parts, total = {}, 0
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                with archive.open(info) as file:
                    shape, dtype = _npy_header(file)
                    size, given = math.prod(shape) * dtype.itemsize, info.file_size - file.tell()
                if size != given:
                    raise ValueError(f"{info.filename} claims {size:,} bytes and has {given:,}")
                total += size
                parts[info.filename.removesuffix(".npy")] = path, info.filename, shape, dtype
    except (ValueError, OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, SyntaxError) as error:
        raise UserError(f"{path} is no .npz file of plain arrays ({error}); save it again without objects") from error
    if total > NPZ_BYTES:
        raise UserError(f"{path} holds {total:,} bytes of arrays, and at most {NPZ_BYTES:,} are read; save it as safetensors")
    return Npz(parts)


def _npy_header(file) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of its arrays")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.hasobject or any(n < 0 for n in shape):
        raise ValueError("objects, or a negative length")
    return shape, dtype


def write(folder: Path, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """One model.safetensors, or several of at most SHARD_BYTES with an index; a former checkpoint of the folder goes."""
    from safetensors.numpy import save_file

    for old in (*folder.glob("model*.safetensors"), *folder.glob(INDEX)):
        old.unlink()
    shards: list[list[str]] = []
    part: dict[str, np.ndarray] = {}

    def flush():
        draft = folder / f"model-{len(shards)}.safetensors"
        save_file(part, draft, metadata={"format": "pt"})
        draft.chmod(0o644)  # the library makes files that others cannot read
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
    (folder / INDEX).write_text(json_text(index, indent=2) + "\n", encoding="utf-8")
