"""Reads untrusted files: regular files of a limited size, JSON of limited depth, and headers of arrays."""

import contextlib
import json
import math
import os
import stat
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxseq import paths
from jaxseq.errors import UserError

JSON_BYTES = 64 << 20  # default limit of `read_json`


def regular(path: str | os.PathLike) -> Path:
    """`path`. Raises UserError unless it is a regular file or a link to one: opening a pipe may block forever, and reading a
    device may never end."""
    path = paths.of(path)
    if paths.is_remote(path):
        if not path.is_file():
            raise UserError(f"there is no file {path}; check the path")
        return path
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise UserError(f"there is no file {path} ({getattr(error, 'strerror', error)}); check the path") from None
    if not stat.S_ISREG(mode):
        kind = next((word for test, word in _KINDS if test(mode)), "no regular file")
        raise UserError(f"{path} is {kind}, and only regular files are read; give a file")
    return path


_KINDS = (
    (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)  # fmt: skip


def read_bytes(path: str | os.PathLike, limit: int) -> bytes:
    """The content of a regular file. Raises UserError for more than `limit` bytes, before reading."""
    path = regular(path)
    try:
        if (size := paths.size(path)) > limit:
            raise UserError(f"{path} has {size:,} bytes, and at most {limit:,} are expected there; is it the right file?")
        with path.open("rb") as file:
            return file.read(limit)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None


def read_json(path: str | os.PathLike, limit: int = JSON_BYTES) -> Any:
    """The data in a UTF-8 JSON file; transformers' {"__float__": "Infinity"} becomes that number. Raises UserError for
    anything else, and for JSON that is nested too deeply."""
    data = read_bytes(path, limit)
    try:
        return json.loads(data.decode("utf-8-sig"), object_hook=_number)
    except RecursionError:
        raise UserError(f"{path} is nested too deep for a JSON file; fetch it again") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error.msg}, line {error.lineno}); fetch it again, or restore it") from None
    except ValueError as error:  # not UTF-8, or a number of thousands of digits
        raise UserError(f"{path} is not JSON ({error}); fetch it again, or restore it") from None


def read_object(path: str | os.PathLike, limit: int = JSON_BYTES) -> dict:
    """`read_json` for a file that must contain an object."""
    content = read_json(path, limit)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object; fetch it again, or restore it")
    return content


_NUMBERS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def _number(content: dict) -> Any:
    if content.keys() == {"__float__"} and isinstance(name := content["__float__"], str):
        return _NUMBERS.get(name, content)
    return content


def json_text(data: Any, default: Callable[[Any], Any] | None = None, **options: Any) -> str:
    """Data as strict JSON: numbers that JSON lacks are written as in transformers, {"__float__": "Infinity"}, which
    `read_json` reads. default, options: of json.dumps."""
    return json.dumps(_finite(data, default), allow_nan=False, **options)


def _finite(data: Any, default: Callable[[Any], Any] | None) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value, default) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value, default) for value in data]
    if default is not None and not isinstance(data, str | int | float | None):
        data = default(data)
    if isinstance(data, float) and not math.isfinite(data):
        return {"__float__": "NaN" if math.isnan(data) else "Infinity" if data > 0 else "-Infinity"}
    return data


@contextlib.contextmanager
def reads_npy_header() -> Iterator[None]:
    """Context for numpy's parser of .npy headers: its errors for a damaged header become ValueError. numpy parses a header as
    a Python literal, then again without Python 2's `L` suffixes."""
    try:
        yield
    except (SyntaxError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise ValueError(f"the header of an array is damaged: {error}") from error


def npy_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether in Fortran order, dtype) of the array that an .npy stream begins with; the data follow.

    Raises ValueError for a damaged header, Python objects and negative lengths.
    """
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"array format version {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with reads_npy_header():
        shape, fortran, dtype = read(stream)
    if dtype.hasobject or any(n < 0 for n in shape):
        raise ValueError("objects, or a negative length")
    return shape, fortran, dtype
