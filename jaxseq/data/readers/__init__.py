"""Readers of files, one file for each kind: they yield the documents of a path lazily and in order.

A reader is a module with SUFFIXES, the suffixes of its files, and `read(path, name, options)`, an iterator over documents. A
document without an id gets one that begins with `name`. Every error in a file is a UserError that names the file and the place in
it. A reader of files that are not text sets BINARY = True; these files are never compressed.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxseq import registry
from jaxseq.data import files
from jaxseq.data.damage import Damage

PACKAGE = "data.readers"
PIECE_BYTES = 1 << 16  # a text is cut into pieces of at most about this size
DNA_DOCUMENT = 8192  # bases


class Document(NamedTuple):
    id: str
    text: str


class TokenDocument(NamedTuple):
    """A document from a file of token ids. ids: [T], without a boundary."""

    id: str
    ids: np.ndarray


class Options(NamedTuple):
    """field: the field or column with the text. parts: the minimum number of pieces of a text. boundary: the tokenizer's, for
    files of token ids. damage: collects the records that cannot be used."""

    field: str
    parts: int = 1
    boundary: int | None = None
    damage: Damage = Damage()

    def stamp(self) -> list:
        """The options that determine the documents, as JSON data."""
        return [*self[:3], *([self.damage.allowed] if self.damage.allowed else [])]


def names() -> tuple[str, ...]:
    return registry.names(PACKAGE)


def read(kind: str, path: Path, name: str, options: Options) -> Iterator[Document | TokenDocument]:
    """The documents of a file."""
    return registry.load(PACKAGE, kind).read(path, name, options)


def binary(kind: str) -> bool:
    """Whether files of this kind are not text."""
    return getattr(registry.load(PACKAGE, kind), "BINARY", False)


def kind(path: Path) -> str:
    """The reader for a file by its suffix, in any case; "text" for unknown suffixes."""
    found = _kinds().get(files.suffix(path), "text")
    return "text" if files.compressed(path) and binary(found) else found


@functools.cache
def _kinds() -> dict[str, str]:
    return {suffix: name for name in names() for suffix in registry.load(PACKAGE, name).SUFFIXES}
