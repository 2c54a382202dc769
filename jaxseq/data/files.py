"""Reads text files: compression by suffix, UTF-8 (UTF-16 and UTF-32 with a byte order mark). Errors name the file and byte.

Only regular files are opened. A compressed file is read as a stream; one that expands too much is refused.
"""

import bz2
import codecs
import contextlib
import functools
import gzip
import io
import lzma
import mmap
import stat
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import zstandard

from jaxseq.errors import UserError

BOM = codecs.BOM_UTF8
WIDE = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
BUFFER = 1 << 20
IN_MEMORY = 64 << 20  # bytes of a decompressed file above which it goes to a temporary file
EXPANSION = 250  # largest expansion of a compressed file: text expands 3 to 30 times, a decompression bomb 1000 times and more
EXPANSION_FREE = 64 << 20  # expansion is not checked below this many bytes


class _Zstd(io.RawIOBase):
    """The bytes of all frames of a .zst; EOFError if the last one is cut off. (zstandard's own reader ends silently, and after
    the first frame.)"""

    def __init__(self, path: Path):
        self._file, self._frame, self._left = path.open("rb"), None, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._left:
            packed = self._frame.unused_data if self._frame and self._frame.eof else b""
            packed = packed or self._file.read(1 << 16)
            if not packed:
                if self._frame and not self._frame.eof:
                    raise EOFError("it ends in the middle of a frame")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._left = memoryview(self._frame.decompress(packed))
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


_OPEN = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda path, mode: io.BufferedReader(_Zstd(path), BUFFER),  # as the others, it has lines
}
_BROKEN = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError)
_HEAD = 1 << 16  # bytes examined to tell binary from text


class _Expanded(io.RawIOBase):
    """A decompressed stream that raises if it expands too much."""

    def __init__(self, stream: IO[bytes], path: Path):
        self._stream, self._path, self._count = stream, path, 0
        self._most = max(EXPANSION_FREE, EXPANSION * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self._stream.read1(len(buffer))
        buffer[: len(data)] = data
        self._count += len(data)
        if self._count > self._most:
            raise UserError(
                f"{self._path} expands to more than {EXPANSION} times its size, which no text does; "
                "decompress it by hand if it is what you want"
            )
        return len(data)


class _Narrowed(io.RawIOBase):
    """UTF-16 or UTF-32 with a byte order mark, converted to UTF-8."""

    def __init__(self, stream: IO[bytes], path: Path, encoding: str):
        self._stream, self._path, self._encoding, self._left = stream, path, encoding, b""
        self._decoder = codecs.getincrementaldecoder(encoding)()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._left:
            data = self._stream.read(BUFFER)
            try:
                self._left = memoryview(self._decoder.decode(data, final=not data).encode())
            except UnicodeError as error:
                raise UserError(
                    f"{self._path} begins as {self._encoding} and is not ({error}); convert it: iconv -f ENCODING -t UTF-8"
                ) from error
            if not data:
                break
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count


@functools.cache
def say(line: str) -> None:
    """Prints a line on standard error, once per process."""
    from rich.console import Console

    Console(stderr=True).print(line, soft_wrap=True, markup=False, highlight=False)


def existing(path: str) -> Path:
    """The path, if it is a regular file or a folder."""
    found = Path(path).expanduser()
    if not found.exists():
        raise UserError(f"data.path={path} does not exist; give the path of a file or folder")
    if not found.is_dir():
        regular(found)
    return found


def regular(path: Path) -> None:
    """Raises UserError if the path is not a regular file: reading a pipe or a device may block or never end."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check its permissions") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise UserError(f"{path} is {kind}, not a file; give a regular file")


def compressed(path: Path) -> bool:
    return path.suffix.lower() in _OPEN


def suffix(path: Path) -> str:
    """The suffix in lower case, without that of compression: ".jsonl" for x.JSONL.gz."""
    return (Path(path.stem) if compressed(path) else path).suffix.lower()


def stamp(paths: list[Path], root: Path | None = None) -> list:
    """Name, size in bytes and modification time in ns of each file, to detect changes."""
    entries = []
    for path in paths:
        status = path.stat()
        name = path.relative_to(root).as_posix() if root and path != root else str(path.resolve())
        entries.append([name, status.st_size, status.st_mtime_ns])
    return entries


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed by suffix, with UTF-16 and UTF-32 converted to UTF-8. File errors become UserErrors."""
    regular(path)
    try:
        with _OPEN.get(path.suffix.lower(), open)(path, "rb") as stream:
            if compressed(path):
                stream = io.BufferedReader(_Expanded(stream, path), BUFFER)
            encoding = _encoding(stream.peek(4)[:4])
            yield io.BufferedReader(_Narrowed(stream, path, encoding), BUFFER) if encoding else stream
    except _BROKEN as error:
        raise UserError(f"{path} cannot be decompressed ({error}); it is damaged: fetch it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check its permissions") from error


def _encoding(head: bytes) -> str | None:
    """The wide encoding whose byte order mark a file begins with, or None."""
    return next((name for mark, name in WIDE.items() if head.startswith(mark)), None)


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[bytes | mmap.mmap]:
    """The whole file for slicing, memory-mapped. If it is large and must be decompressed or converted, a temporary file is
    mapped."""
    with opened(path) as stream:
        if isinstance(stream, io.BufferedReader) and isinstance(stream.raw, io.FileIO):
            with _map(stream) as data:
                yield data
            return
        data = stream.read(IN_MEMORY)
        if len(data) < IN_MEMORY or is_binary(data):
            yield data
            return
        with tempfile.TemporaryFile() as file:
            while data:
                file.write(data)
                data = stream.read(BUFFER)
            file.flush()
            with _map(file) as data:
                yield data


@contextlib.contextmanager
def _map(file: IO[bytes]) -> Iterator[bytes | mmap.mmap]:
    if file.seek(0, io.SEEK_END) == 0:  # an empty file cannot be mapped
        yield b""
    else:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def is_binary(data: bytes | mmap.mmap) -> bool:
    """Whether there is a NUL byte near the start, which is git's test."""
    return b"\0" in data[:_HEAD]


def starts_binary(path: Path) -> bool:
    with opened(path) as stream:
        return is_binary(stream.read(_HEAD))


def refuse_binary(path: Path, data: bytes | mmap.mmap) -> None:
    if is_binary(data):
        raise UserError(f"{path} is a binary file (byte {data[:_HEAD].index(0)} is NUL); give UTF-8 text")


def decode(path: Path, data: bytes, offset: int) -> str:
    """UTF-8 to text. `offset`: the position of `data` in the file, for the message."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        at = offset + error.start
        raise UserError(
            f"{path} is not UTF-8 (byte {at} is 0x{data[error.start]:02x}); convert it: iconv -f ENCODING -t UTF-8"
        ) from error
