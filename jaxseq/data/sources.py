"""Sources of documents: the two built-in corpora, files, folders and mixtures.

Opening a source reads only names, sizes and the beginnings of .json files. Documents are then read lazily, in a fixed order.
Empty documents are skipped. Every error in the input is a `UserError` that names the file and the place in it.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxseq.data import files, folders, mixture, readers
from jaxseq.data.damage import Damage
from jaxseq.data.readers import Document, Options
from jaxseq.errors import UserError

ASSETS = Path(__file__).parent / "assets"
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

    def left_out(self) -> list[str]:
        """Descriptions of the records that the last pass skipped."""
        return [line for part in self.damage for line in part.told()]


def _sotu(config, boundary) -> Source:
    """Built in: 233 State of the Union addresses, 10.8 MB."""
    path = ASSETS / "sotu.jsonl.xz"
    read = functools.partial(readers.json_lines, path, path.name, Options("text"))
    return Source("sotu", read, path.stat().st_size, False, files.stamp([path]))


def _dna(config, boundary) -> Source:
    """Built in: the E. coli K-12 genome as documents of 8192 bases, A C G T."""
    path = ASSETS / "ecoli_mg1655.2bit"

    def read() -> Iterator[Document]:
        packed = np.fromfile(path, np.uint8)
        bases = np.frombuffer(b"ACGT", np.uint8)[(packed[:, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3].reshape(-1)
        for start in range(0, bases.size, readers.DNA_DOCUMENT):
            piece = bases[start : start + readers.DNA_DOCUMENT].tobytes().decode()
            yield Document(f"U00096.3:{start + 1}-{start + len(piece)}", piece)

    return Source("dna", read, path.stat().st_size, False, files.stamp([path]))


def _file(kind: str, config, boundary: int | None) -> Source:
    """One file, plain or .gz, .bz2, .xz, .zst; see `readers`."""
    path = files.existing(config.path)
    if path.is_dir():
        raise UserError(f"data.path={path} is a folder; set data.source=folder, or name one file")
    every = max(1, config.validation_every)
    options = Options(config.field, PIECES * every if kind == "text" else 1, boundary, Damage(config.skip_records))

    def read() -> Iterator[Document]:
        options.damage.begin()
        yield from readers.READERS[kind](path, path.name, options)

    stamp = [*files.stamp([path]), kind, *options.stamp()]
    return Source(str(path), read, path.stat().st_size, _plain([path], kind), stamp, damage=(options.damage,))


def _plain(paths: list[Path], *kinds: str) -> bool:
    return not (any(map(files.compressed, paths)) or {"table", "tokens"} & set(kinds))


def _folder(config, boundary: int | None) -> Source:
    """Every file under a folder, sorted by path, following links. The suffix selects the reader; the default is text.

    Files of test splits are skipped, those of validation splits are used for validation (see `splits`). Hidden files and folders
    and binary files (a NUL byte in the first 64 KiB) are skipped. Reports on standard error which files are read and skipped.
    """
    root = files.existing(config.path)
    if not root.is_dir():
        raise UserError(f"data.path={root} is a file; set data.source=text or jsonl, or name a folder")
    found = folders.open_folder(root, config.field, boundary is not None)
    if line := found.describe():
        files.say(line)
    train = _folder_files(root, found.train, config, boundary, 0 if found.validation else config.validation_every)
    if not found.validation:
        return train
    return train._replace(validation=_folder_files(root, found.validation, config, boundary, 0))


def _folder_files(root: Path, found: list[folders.File], config, boundary: int | None, every: int) -> Source:
    """Some files of a folder. every: if all are texts, they are cut into at least about PIECES * every documents together."""
    texts_alone = all(file.kind == "text" for file in found)
    parts = -(-PIECES * every // len(found)) if texts_alone and len(found) < every else 1
    options = Options(config.field, parts, boundary, Damage(config.skip_records))

    def unit(file: folders.File, binary: list[str]) -> Iterator[Document]:
        if file.kind == "text" and files.starts_binary(file.path):
            binary.append(file.name)
            return
        for document in readers.READERS[file.kind](file.path, file.name, options):
            own = document.id.startswith(file.name)
            yield document if own else document._replace(id=f"{file.name}#{document.id}")

    def read() -> Iterator[Document]:
        options.damage.begin()
        binary: list[str] = []
        for file in found:
            yield from unit(file, binary)
        if binary:
            files.say(f"{root}: skipped {folders.shown(binary)} (binary)")

    paths, kinds = [file.path for file in found], [file.kind for file in found]
    size = sum(path.stat().st_size for path in paths)
    units = tuple((file.name, functools.partial(unit, file, [])) for file in found)
    stamp = [*files.stamp(paths, root), *kinds, *options.stamp()]
    return Source(str(root), read, size, _plain(paths, *kinds), stamp, damage=(options.damage,), units=units)


def _huggingface(config, boundary: int | None) -> Source:
    """A dataset on disk: a folder written by `save_to_disk`, or .parquet / .arrow files. Needs the extra `datasets`."""
    if files.existing(config.path).is_dir():
        return _folder(config, boundary)
    return _file("table", config, boundary)


def _mixture(config, boundary: int | None) -> Source:
    """Several corpora; see `mixture`."""
    path = files.existing(config.path)
    described, opened = mixture.parts(path), {}
    for name, part in described.items():
        own = config.copy_and_resolve_references()
        with own.unlocked():
            own.path = str(path.parent / Path(part["path"]).expanduser())
            own.source, own.field = part.get("source", "sotu"), part.get("field", config.field)
        opened[name] = source(own, boundary)
    weights = {name: float(part["weight"]) for name, part in described.items()}
    stamp, size = [[name, *one.stamp] for name, one in opened.items()], sum(one.size for one in opened.values())
    plain, damage = all(one.plain for one in opened.values()), [part for one in opened.values() for part in one.damage]
    found = Source(str(path), mixture.read(opened), size, plain, stamp, None, weights, tuple(damage), opened)
    held = [one.validation for one in opened.values() if one.validation]
    if not held:
        return found
    stamps, sizes = [one.stamp for one in held], sum(one.size for one in held)
    damage = tuple(part for one in held for part in one.damage)
    held = Source(f"{path} (validation)", mixture.read(opened, True), sizes, False, stamps, damage=damage)
    return found._replace(validation=held)


SOURCES: dict[str, Callable] = {
    "sotu": _sotu,
    "dna": _dna,
    **{kind: functools.partial(_file, kind) for kind in readers.READERS},
    "folder": _folder,
    "huggingface": _huggingface,
    "mixture": _mixture,
}
BUILT_IN = ("sotu", "dna")


def guess(path: Path) -> str:
    """The name of the source for `path`: "folder", or the reader for its suffix."""
    return "folder" if path.is_dir() else readers.kind(path)


def source(config, boundary: int | None = None) -> Source:
    """Open the source that the config's data section names.

    Args:
        config: the data section; reads `source`, `path`, `field`, `tokenizer`, `validation_every`, `skip_records`. With a
            path and the default source ("sotu"), the source is guessed from the path.
        boundary: the tokenizer's boundary, which ends a document in files of token ids; None: such files are refused.

    Raises:
        UserError: unknown source; a path that is missing, of the wrong kind, or given to a built-in source.
    """
    name = config.source
    if name not in SOURCES:
        raise UserError(f"data.source={name!r} is unknown; choose one of {', '.join(SOURCES)}")
    if config.path and name == "sotu":
        name = guess(files.existing(config.path))
    if config.path and name in BUILT_IN:
        raise UserError(f"data.source={name} is built in and takes no data.path; leave one of the two out")
    if not config.path and name not in BUILT_IN:
        raise UserError(f"data.source={name} needs a path; set data.path")
    return SOURCES[name](config, boundary)
