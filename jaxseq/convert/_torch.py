"""Reads torch's zip files (.pth, .pt, .bin since torch 1.6) without torch, and without executing the pickle.

The pickle inside describes tensors as slices of storages. The unpickler here knows the six names that this needs and refuses
all others, so a file can describe only tensors, dicts, lists, numbers and text. It is based on Python's pure-Python unpickler,
because the one in C allocates memory for whatever sizes a file claims.
"""

import collections
import math
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxseq.convert._tensors import Tensors
from jaxseq.errors import UserError

LONGEST_PICKLE = 32 << 20  # bytes; names and shapes of a large model take less than 1 MiB
DEEPEST, MOST = 32, 1_000_000  # limits for the nesting and the number of entries of dicts
DTYPES = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16, "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_, "ComplexFloatStorage": np.complex64, "ComplexDoubleStorage": np.complex128,
}  # fmt: skip


_OPCODES = (
    pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT,
    pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT, pickle.BINUNICODE, pickle.SHORT_BINUNICODE,
    pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3,
    pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS, pickle.GLOBAL,
    pickle.STACK_GLOBAL, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET,
    pickle.BINPERSID, pickle.REDUCE, pickle.BUILD, pickle.POP,
)  # fmt: skip


class Storage(NamedTuple):
    file: Path
    member: str
    dtype: np.dtype
    count: int


class Slice(NamedTuple):
    """A tensor: elements of a storage, from `start` on, with `shape` and `strides` (all in elements)."""

    storage: Storage
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage, start, shape, strides, *_rest) -> Slice:
    """Takes the arguments of torch._utils._rebuild_tensor_v2."""
    shape, strides = tuple(map(int, shape)), tuple(map(int, strides))
    if not isinstance(storage, Storage) or len(shape) != len(strides) or min((start, *shape, *strides), default=0) < 0:
        raise pickle.UnpicklingError("a tensor without a valid storage")
    last = start + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= storage.count:
        raise pickle.UnpicklingError("a tensor that reaches past its storage")
    if math.prod(shape) > storage.count:
        raise pickle.UnpicklingError("a tensor that repeats the numbers of its storage")
    return Slice(storage, int(start), shape, strides)


def _parameter(data, *_rest) -> Slice:
    return data


class _Unpickler(pickle._Unpickler):
    # only the opcodes that torch writes: none that make objects of other classes or announce sizes in advance
    dispatch = {code: load for code, load in pickle._Unpickler.dispatch.items() if bytes([code]) in _OPCODES}

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
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, but only tensors are allowed")

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _device, count = pid
        if kind != "storage" or dtype not in DTYPES:
            raise pickle.UnpicklingError("a reference to something other than a storage")
        member, dtype = f"{self.root}/data/{key}", np.dtype(DTYPES[dtype])
        info = self.archive.getinfo(member)
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise pickle.UnpicklingError(f"the storage {key} is compressed, which torch never does")
        if not 0 <= int(count) * dtype.itemsize <= min(info.file_size, self.path.stat().st_size):
            raise pickle.UnpicklingError(f"the storage {key} is shorter than it says")
        return Storage(self.path, member, dtype, int(count))


class Storages(Tensors):
    """`parts` is {name: Slice}."""

    def shape(self, name: str) -> tuple[int, ...]:
        return self.parts[name].shape

    def dtype(self, name: str) -> str:
        return self.parts[name].storage.dtype.name

    def __getitem__(self, name):
        part = self.parts[name]
        with zipfile.ZipFile(part.storage.file) as archive, archive.open(part.storage.member) as file:
            size = part.storage.dtype.itemsize
            file.seek(part.start * size)
            span = 1 + sum((n - 1) * s for n, s in zip(part.shape, part.strides, strict=True)) if math.prod(part.shape) else 0
            flat = np.frombuffer(file.read(span * size), part.storage.dtype)
        return np.lib.stride_tricks.as_strided(flat, part.shape, [s * size for s in part.strides], writeable=False)


def open(path: Path) -> Storages:
    """The tensors of a file; those in nested dicts get dotted names. Raises UserError for anything but tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(members) != 1:
                raise pickle.UnpicklingError(f"it has {len(members)} data.pkl files, where torch writes one")
            if archive.getinfo(members[0]).file_size > LONGEST_PICKLE:
                raise pickle.UnpicklingError("its description is too long")
            with archive.open(members[0]) as file:
                content = _Unpickler(file, path, archive, members[0].removesuffix("/data.pkl")).load()
            parts = dict(_flat(content))
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is not a complete zip file of torch 1.6 or later; save it again with torch.save") from error
    except Exception as error:  # a malicious pickle can raise any error in the unpickler
        what = f"{type(error).__name__} {error}" if isinstance(error, KeyError | IndexError) else error
        raise UserError(f"{path} is not a file of plain tensors: {what}; save the state dict alone, or safetensors") from error
    if not parts:
        raise UserError(f"{path} holds no tensors; save a state dict, or safetensors")
    return Storages(parts)


def _flat(content: Any) -> Iterator[tuple[str, Slice]]:
    """Dotted names and tensors, in order. The nesting is bounded, because a dict may contain itself."""
    waiting, seen = [("", content, 0)], 0
    while waiting:
        name, value, depth = waiting.pop()
        seen += 1
        if depth > DEEPEST or seen > MOST:
            raise pickle.UnpicklingError("dicts nested without end, or too many of them")
        if isinstance(value, Slice):
            yield name, value
        elif isinstance(value, dict):
            below = [(f"{name}.{key}" if name else str(key), part, depth + 1) for key, part in value.items()]
            waiting += reversed(below)
