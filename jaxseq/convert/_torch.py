"""torch's zip files (.pth, .pt, .bin since torch 1.6) without torch, and without running what a pickle says.

The pickle inside describes tensors as slices of storages. The unpickler here knows the six names that this takes and refuses
every other, so that a file can describe tensors, dicts, lists, numbers and text, and nothing else.
"""

import collections
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxseq.convert._files import Tensors
from jaxseq.errors import UserError

LONGEST_PICKLE = 256 << 20  # bytes; names and shapes of a large model take less than 1 MiB
DTYPES = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16, "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_, "ComplexFloatStorage": np.complex64, "ComplexDoubleStorage": np.complex128,
}  # fmt: skip


class Storage(NamedTuple):
    file: Path
    member: str
    dtype: np.dtype
    count: int


class Slice(NamedTuple):
    """A tensor: `shape` elements of a storage from `start` on, `strides` apart (all in elements)."""

    storage: Storage
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage, start, shape, strides, *_rest) -> Slice:
    """What torch._utils._rebuild_tensor_v2 is given."""
    shape, strides = tuple(map(int, shape)), tuple(map(int, strides))
    if not isinstance(storage, Storage) or len(shape) != len(strides) or min((start, *shape, *strides), default=0) < 0:
        raise pickle.UnpicklingError("a tensor without a sound storage")
    last = start + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= storage.count:
        raise pickle.UnpicklingError("a tensor that reaches past its storage")
    return Slice(storage, int(start), shape, strides)


def _parameter(data, *_rest) -> Slice:
    return data


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, path: Path, archive: zipfile.ZipFile, root: str):
        super().__init__(file)
        self.path, self.archive, self.root = path, archive, root

    def find_class(self, module, name):
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch", "Size"): tuple,
        }
        if (module, name) in known:
            return known[module, name]
        if module in ("torch", "torch.storage") and name in DTYPES:
            return name
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only tensors are admitted")

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _device, count = pid
        if kind != "storage" or dtype not in DTYPES:
            raise pickle.UnpicklingError("a reference to something other than a storage")
        member, dtype = f"{self.root}/data/{key}", np.dtype(DTYPES[dtype])
        if self.archive.getinfo(member).file_size < int(count) * dtype.itemsize:
            raise pickle.UnpicklingError(f"the storage {key} is shorter than it says")
        return Storage(self.path, member, dtype, int(count))


class Storages(Tensors):
    """Of {name: Slice}."""

    def shape(self, name):
        return self.parts[name].shape

    def __getitem__(self, name):
        part = self.parts[name]
        with zipfile.ZipFile(part.storage.file) as archive, archive.open(part.storage.member) as file:
            size = part.storage.dtype.itemsize
            file.seek(part.start * size)
            span = 1 + sum((n - 1) * s for n, s in zip(part.shape, part.strides, strict=True)) if math.prod(part.shape) else 0
            flat = np.frombuffer(file.read(span * size), part.storage.dtype)
        return np.lib.stride_tricks.as_strided(flat, part.shape, [s * size for s in part.strides], writeable=False)


def open(path: Path) -> Storages:
    """The tensors of a file, those of nested dicts with dotted names. Raises UserError for anything but tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            if archive.getinfo(member).file_size > LONGEST_PICKLE:
                raise pickle.UnpicklingError("its description is too long")
            with archive.open(member) as file:
                content = _Unpickler(file, path, archive, member.removesuffix("/data.pkl")).load()
    except zipfile.BadZipFile as error:
        raise UserError(
            f"{path} is no zip file of torch 1.6 or later; save it again with torch.save, or as safetensors"
        ) from error
    except (pickle.UnpicklingError, KeyError, ValueError, TypeError, EOFError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is no file of plain tensors: {error}; save the state dict alone, or safetensors") from error
    parts = dict(_flat(content, ""))
    if not parts:
        raise UserError(f"{path} holds no tensors; save a state dict, or safetensors")
    return Storages(parts)


def _flat(content: Any, prefix: str):
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(content, Slice):
        yield prefix, content
