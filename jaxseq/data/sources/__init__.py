"""Sources of documents: the two built-in corpora, files, folders and mixtures.

A source is a module with `open(config, boundary) -> Source`, see `source`; BUILT_IN = True if it takes no data.path. The kinds of
files (see `readers`) are sources, too. Opening a source reads only names, sizes and the beginnings of .json files. Documents are
then read lazily, in a fixed order. Empty documents are skipped. Every error in the input is a `UserError` that names the file and
the place in it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxseq import registry
from jaxseq.data import files, readers
from jaxseq.data.damage import Damage
from jaxseq.data.readers import Document, Options
from jaxseq.errors import UserError

PACKAGE = "data.sources"
ASSETS = Path(__file__).parents[1] / "assets"
PIECES = 5  # a text is cut into at least about this many pieces per validation document


class Source(NamedTuple):
    """An opened source.

    name: for messages.
    read: starts a pass over the documents.
    size: bytes on disk.
    plain: whether `size` is about the size of the text (False if compressed).
    stamp: JSON data that change when the documents change (names, sizes, modification times, options).
    validation: the source's own validation split; None: it has none, and every n-th document is used for validation.
    weights, parts: {part: weight} and {part: source} of a mixture.
    damage: the records that the last pass skipped, for each part.
    units: (name, read) of each file; read one after another they give `read`. () for a single file.
    """

    name: str
    read: Callable[[], Iterator[Document]]
    size: int
    plain: bool
    stamp: list
    validation: "Source | None" = None
    weights: dict[str, float] | None = None
    damage: tuple[Damage, ...] = ()
    parts: "dict[str, Source] | None" = None
    units: tuple[tuple[str, Callable[[], Iterator[Document]]], ...] = ()

    def skipped(self) -> list[str]:
        """Descriptions of the records that the last pass skipped."""
        return [line for part in self.damage for line in part.messages()]


def guess(path: Path) -> str:
    """The name of the source for `path`: "folder", or the reader for its suffix."""
    return "folder" if path.is_dir() else readers.kind(path)


def source(config: ConfigDict, boundary: int | None = None) -> Source:
    """Open the source that the config's data section names.

    Args:
        config: the data section; reads `source`, `path`, `field`, `tokenizer`, `validation_every`, `skip_records`. With a
            path and the default source ("sotu"), the source is guessed from the path.
        boundary: the tokenizer's boundary, which ends a document in files of token ids; None: such files are refused.

    Raises:
        UserError: unknown source; a path that is missing, of the wrong kind, or given to a built-in source.
    """
    name = guess(files.existing(config.path)) if config.path and config.source == "sotu" else config.source
    known = sorted({*registry.names(PACKAGE), *readers.names()})
    if name not in known:
        raise UserError(f"data.source={name!r} is unknown; choose one of {', '.join(known)}")
    module = registry.load(PACKAGE, name) if name in registry.names(PACKAGE) else None
    built_in = getattr(module, "BUILT_IN", False)
    if config.path and built_in:
        raise UserError(f"data.source={name} is built in and takes no data.path; leave one of the two out")
    if not config.path and not built_in:
        raise UserError(f"data.source={name} needs a path; set data.path")
    return module.open(config, boundary) if module else open_file(name, config, boundary)


def open_file(kind: str, config: ConfigDict, boundary: int | None) -> Source:
    """One file, plain or .gz, .bz2, .xz, .zst; see `readers`."""
    path = files.existing(config.path)
    if path.is_dir():
        raise UserError(f"data.path={path} is a folder; set data.source=folder, or name one file")
    every = max(1, config.validation_every)
    options = Options(config.field, PIECES * every if kind == "text" else 1, boundary, Damage(config.skip_records))

    def read() -> Iterator[Document]:
        options.damage.begin()
        yield from readers.read(kind, path, path.name, options)

    stamp = [*files.stamp([path]), kind, *options.stamp()]
    return Source(str(path), read, path.stat().st_size, plain(path, kind), stamp, damage=(options.damage,))


def plain(path: Path, kind: str) -> bool:
    """Whether the size of a file is about that of its text."""
    return not files.compressed(path) and not readers.binary(kind)
