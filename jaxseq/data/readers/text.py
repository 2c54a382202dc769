"""Texts: documents are separated by "<|endoftext|>", or else are segments of the text."""

import mmap
from collections.abc import Iterator
from pathlib import Path

from jaxseq.data import files
from jaxseq.data.readers import PIECE_BYTES, Document, Options
from jaxseq.errors import UserError

SUFFIXES = (".txt",)  # and every suffix that no other reader has
SEPARATOR = b"<|endoftext|>"


def read(path: Path, name: str, options: Options) -> Iterator[Document]:
    """A text as documents: split at "<|endoftext|>", else into at least `options.parts` pieces of at most 64 KiB.

    Cuts are made after blank lines if possible, else after line ends, spaces or characters.
    """
    with files.mapped(path) as data:
        files.refuse_binary(path, data)
        for start, end in pieces(data, max(1, min(PIECE_BYTES, len(data) // options.parts))):
            whole = end - start >= len(data) - len(files.BOM)
            try:
                content = files.decode(path, data[start:end], start)
            except UserError as error:
                options.damage.skip(error)
                continue
            yield Document(name if whole else f"{name}:{start}", content)


def pieces(data: bytes | mmap.mmap, target: int) -> Iterator[tuple[int, int]]:
    """[start, end) of each document of a text, in bytes. `data` is bytes or an mmap."""
    size = len(data)
    start = len(files.BOM) if data[: len(files.BOM)] == files.BOM else 0
    if data.find(SEPARATOR) >= 0:
        while start < size:
            end = data.find(SEPARATOR, start)
            end = size if end < 0 else end
            head = start + _line_end(data[start : start + 2]) * (start > 0)
            last = data[max(head, end - 2) : end]
            tail = end - (2 if last == b"\r\n" else last.endswith(b"\n"))
            if head < tail:
                yield head, tail
            start = end + len(SEPARATOR)
        return
    while start < size:
        end = _cut(data, start + target, min(size, start + 2 * target)) if size - start > target else size
        yield start, end
        start = end


def _line_end(two: bytes) -> int:
    """The length of the line end that two bytes begin with."""
    return 2 if two == b"\r\n" else int(two[:1] == b"\n")


def _cut(data, low: int, high: int) -> int:
    """The position in [low, high] to end a piece: after a blank line, a line end or a space, or else between characters."""
    for pattern in (b"\n\n", b"\n\r\n", b"\n", b" "):
        at = data.find(pattern, low - len(pattern), high)
        if at >= 0:
            return at + len(pattern)
    while low < len(data) and data[low] & 0xC0 == 0x80:  # a continuation byte of UTF-8
        low += 1
    return low
