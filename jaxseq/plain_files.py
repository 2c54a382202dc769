"""Files that users give, read without trust: regular ones only, of a known size, JSON that is no deeper than Python reads, and
headers of arrays."""

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

JSON_BYTES = 64 << 20  # the longest that `read_json` takes unless it is told otherwise


def regular(path: str | os.PathLike) -> Path:
    """`path`, which is there and is a regular file, or a link to one.

    Raises UserError otherwise: opening a pipe would wait for ever, and reading a device might never end.
    """
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
    """The whole of a regular file. Raises UserError for one of more than `limit` bytes, before it is read."""
    path = regular(path)
    try:
        if (size := paths.size(path)) > limit:
            raise UserError(f"{path} has {size:,} bytes, and at most {limit:,} are expected there; is it the right file?")
        with path.open("rb") as file:
            return file.read(limit)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None


def read_json(path: str | os.PathLike, limit: int = JSON_BYTES) -> Any:
    """What a JSON file in UTF-8 says. transformers' {"__float__": "Infinity"} is that number.

    Raises UserError for anything else, also for one nested too deep.
    """
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
    """`read_json` of a file that must hold an object."""
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
    """Data as JSON that every reader takes: numbers that JSON lacks are written as transformers writes them,
    {"__float__": "Infinity"}, and `read_json` reads them so. default, options: of json.dumps."""
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
    """Inside this context numpy reads headers of .npy: what it raises for a damaged one becomes a ValueError.

    numpy parses a header as a Python literal, and again after removing Python 2's `L` from numbers.
    """
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
