"""Every file under a folder, sorted by path, following links. The suffix selects the reader; the default is text.

Files of test splits are skipped, those of validation splits are used for validation (see `splits`). Hidden files and folders and
binary files (a NUL byte in the first 64 KiB) are skipped. Reports on standard error which files are read and skipped.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from jaxseq.data import files, folders, readers
from jaxseq.data.damage import Damage
from jaxseq.data.readers import Document, Options
from jaxseq.data.sources import PIECES, Source, plain
from jaxseq.errors import UserError


def open(config: ConfigDict, boundary: int | None) -> Source:
    root = files.existing(config.path)
    if not root.is_dir():
        raise UserError(f"data.path={root} is a file; set data.source=text or jsonl, or name a folder")
    found = folders.open_folder(root, config.field, boundary is not None)
    if line := found.describe():
        files.say(line)
    train = _some(root, found.train, config, boundary, 0 if found.validation else config.validation_every)
    if not found.validation:
        return train
    return train._replace(validation=_some(root, found.validation, config, boundary, 0))


def _some(root: Path, found: list[folders.File], config, boundary: int | None, every: int) -> Source:
    """Some files of a folder. every: if all are texts, they are cut into at least about PIECES * every documents together."""
    only_texts = all(file.kind == "text" for file in found)
    parts = -(-PIECES * every // len(found)) if only_texts and len(found) < every else 1
    options = Options(config.field, parts, boundary, Damage(config.skip_records))

    def unit(file: folders.File, binary: list[str]) -> Iterator[Document]:
        if file.kind == "text" and files.starts_binary(file.path):
            binary.append(file.name)
            return
        for document in readers.read(file.kind, file.path, file.name, options):
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
    text = all(plain(file.path, file.kind) for file in found)
    return Source(str(root), read, size, text, stamp, damage=(options.damage,), units=units)
