"""Reads GGUF files with the `gguf` package: the metadata is the config, and tensors are dequantised to float32 on reading."""

import mmap
import struct
from pathlib import Path

import numpy as np

from jaxseq.convert._tensors import Tensors
from jaxseq.errors import UserError

ARRAY, STRING = 9, 8  # type codes of values
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of the other types


class Quantized(Tensors):
    """`parts` is {name: gguf's ReaderTensor}. GGUF stores shapes with the fastest axis first."""

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(n) for n in reversed(self.parts[name].shape))

    def dtype(self, name: str) -> str:
        return "float32"

    def __getitem__(self, name):
        from gguf import dequantize

        part = self.parts[name]
        return np.asarray(dequantize(part.data, part.tensor_type), np.float32).reshape(self.shape(name))


def open(path: Path) -> tuple[dict, Quantized]:
    """({key: value} of the metadata, lazy tensors)"""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise UserError("reading GGUF needs the gguf package; pip install 'jaxseq[gguf]'") from None
    try:
        _check(path)
        reader = GGUFReader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    except (ValueError, OSError, IndexError, KeyError, struct.error, TypeError, OverflowError) as error:
        raise UserError(f"{path} is not a complete GGUF file ({error}); fetch it again") from error
    return metadata, Quantized({tensor.name: tensor for tensor in reader.tensors})


def _check(path: Path) -> None:
    """Raises ValueError if the header claims more than the file holds: the package would read beyond its end."""
    if path.stat().st_size < 24:
        raise ValueError("it is too short")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        tensors, values = struct.unpack_from("<QQ", data, 8)
        if max(tensors, values) > len(data) // 12:
            raise ValueError(f"it claims {tensors:,} tensors and {values:,} values")
        at = 24
        for _ in range(values):
            at = _value(data, _string(data, at))
        for _ in range(tensors):
            at = _string(data, at)
            (axes,) = struct.unpack_from("<I", data, at)
            if axes > 8:
                raise ValueError(f"a tensor of {axes:,} axes")
            at += 4 + 8 * axes + 4 + 8


def _string(data, at: int) -> int:
    """The end offset of the text that begins at `at`."""
    (length,) = struct.unpack_from("<Q", data, at)
    if (end := at + 8 + length) > len(data):
        raise ValueError(f"a text of {length:,} bytes")
    return end


def _value(data, at: int) -> int:
    """The end offset of the type and value that begin at `at`."""
    (kind,) = struct.unpack_from("<I", data, at)
    if kind != ARRAY:
        return _string(data, at + 4) if kind == STRING else at + 4 + SIZES[kind]
    item, count = struct.unpack_from("<IQ", data, at + 4)
    at += 16
    if count * (8 if item == STRING else SIZES[item]) > len(data) - at:  # KeyError for arrays of arrays, which no writer makes
        raise ValueError(f"an array of {count:,}")
    if item != STRING:
        return at + count * SIZES[item]
    for _ in range(count):
        at = _string(data, at)
    return at
