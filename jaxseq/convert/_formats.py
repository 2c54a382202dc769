"""Single files of tensors: safetensors, torch's formats, numpy's .npz."""

import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from jaxseq.convert import _torch
from jaxseq.convert._tensors import Tensors
from jaxseq.errors import UserError
from jaxseq.plain_files import npy_header, regular

NPZ_BYTES = 2 << 30  # limit for all arrays of a file together; only small models use .npz
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".gguf", ".npz")


def one(path: Path) -> Tensors:
    """The tensors of one file; its suffix gives the format."""
    if path.suffix == ".safetensors":
        return safetensors(path)
    if path.suffix in (".pth", ".pt", ".bin", ".ckpt"):
        return _torch.open(regular(path))
    if path.suffix == ".npz":
        return npz(regular(path))
    raise UserError(f"{path} is not one of {', '.join(SUFFIXES)}; convert it to safetensors")


_SAFETENSORS_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32", "I16": "int16",
    "I8": "int8", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64", "BOOL": "bool",
}  # fmt: skip


class SafeTensors(Tensors):
    """`parts` is {name: (file, shape, dtype)}. Each read reopens its file: the pages of a mapping kept open count as memory."""

    def shape(self, name: str) -> tuple[int, ...]:
        return self.parts[name][1]

    def dtype(self, name: str) -> str:
        return self.parts[name][2]

    def __getitem__(self, name):
        path, _, dtype = self.parts[name]
        if dtype not in _SAFETENSORS_DTYPES.values():
            raise UserError(f"{name} of {path} is {dtype}, which needs scales to be weights; save it in bfloat16")
        with _open(path) as file:
            return file.get_tensor(name)


def _open(path: Path):
    import safetensors

    try:
        return safetensors.safe_open(regular(path), "np")
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a complete safetensors file ({error}); fetch it again") from error


def safetensors(path: Path) -> SafeTensors:
    parts = {}
    with _open(path) as file:
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            tensor = file.get_slice(name)
            dtype = tensor.get_dtype()
            parts[name] = path, tuple(tensor.get_shape()), _SAFETENSORS_DTYPES.get(dtype, dtype)
    return SafeTensors(parts)


class Npz(Tensors):
    """`parts` is {name: (file, member, shape, dtype)}."""

    def shape(self, name: str) -> tuple[int, ...]:
        return self.parts[name][2]

    def dtype(self, name: str) -> str:
        return self.parts[name][3].name

    def __getitem__(self, name):
        path, member, shape, _ = self.parts[name]
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            return np.lib.format.read_array(file, allow_pickle=False).reshape(shape)


def npz(path: Path) -> Npz:
    """The arrays of an .npz file. All sizes are checked before any array is read."""
    parts, total = {}, 0
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                with archive.open(info) as file:
                    shape, _, dtype = npy_header(file)
                    size, given = math.prod(shape) * dtype.itemsize, info.file_size - file.tell()
                if size != given:
                    raise ValueError(f"{info.filename} claims {size:,} bytes and has {given:,}")
                total += size
                parts[info.filename.removesuffix(".npy")] = path, info.filename, shape, dtype
    except (ValueError, OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not an .npz file of plain arrays ({error}); save it again without objects") from error
    if total > NPZ_BYTES:
        raise UserError(f"{path} holds {total:,} bytes of arrays, more than the limit of {NPZ_BYTES:,}; save it as safetensors")
    return Npz(parts)
