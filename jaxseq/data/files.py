"""Reading files of text: compression by suffix, UTF-8 checked, faults named with file and byte."""

import bz2
import contextlib
import gzip
import io
import lzma
import mmap
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import zstandard

from jaxseq.errors import UserError

BOM = b"\xef\xbb\xbf"


def _open_zstd(path: Path, mode: str) -> IO[bytes]:
    return io.BufferedReader(zstandard.open(path, mode))  # zstandard's own reader has no lines


_OPEN = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zstd}
_BROKEN = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError)
_HEAD = 1 << 16  # bytes looked at to tell binary from text


def existing(path: str) -> Path:
    """The path, if something is there."""
    found = Path(path).expanduser()
    if not found.exists():
        raise UserError(f"data.path={path} does not exist; give the path of a file or folder")
    return found


def compressed(path: Path) -> bool:
    return path.suffix in _OPEN


def is_json_lines(path: Path) -> bool:
    """By suffix: .jsonl or .ndjson, compressed or not, and compressed .json (a plain .json is often one document)."""
    if compressed(path):
        return Path(path.stem).suffix in (".jsonl", ".ndjson", ".json")
    return path.suffix in (".jsonl", ".ndjson")


def stamp(paths: list[Path], root: Path | None = None) -> list:
    """What tells that files changed: name, size in bytes and modification time in ns of each."""
    entries = []
    for path in paths:
        status = path.stat()
        name = path.relative_to(root).as_posix() if root and path != root else str(path.resolve())
        entries.append([name, status.st_size, status.st_mtime_ns])
    return entries


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed by suffix. Faults of the file become UserErrors."""
    try:
        with _OPEN.get(path.suffix, open)(path, "rb") as stream:
            yield stream
    except _BROKEN as error:
        raise UserError(f"{path} cannot be decompressed ({error}); it is damaged: fetch it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check its permissions") from error


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[bytes | mmap.mmap]:
    """The whole file for slicing: memory-mapped, or decompressed into memory."""
    with opened(path) as stream:
        if compressed(path):
            yield stream.read()
        elif path.stat().st_size == 0:  # cannot be mapped
            yield b""
        else:
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield data


def is_binary(data: bytes | mmap.mmap) -> bool:
    """A NUL byte near the start: git's test."""
    return b"\0" in data[:_HEAD]


def refuse_binary(path: Path, data: bytes | mmap.mmap) -> None:
    if is_binary(data):
        raise UserError(f"{path} is a binary file (byte {data[:_HEAD].index(0)} is NUL); give UTF-8 text")


def decode(path: Path, data: bytes, offset: int) -> str:
    """UTF-8 to text. `offset`: where in the file `data` begins, for the message."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        at = offset + error.start
        raise UserError(
            f"{path} is not UTF-8 (byte {at} is 0x{data[error.start]:02x}); convert it: iconv -f ENCODING -t UTF-8"
        ) from error
