"""The files of a folder: links are followed, files are sorted by path and grouped by split and kind; omissions are reported."""

import json
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import NamedTuple

from jaxseq.data import files, readers, splits
from jaxseq.data.readers import jsonl
from jaxseq.errors import UserError

# Files that describe a dataset; they are skipped only beside files of records, because elsewhere README.md is a text.
ABOUT = ("readme.md", "license", "license.txt", "license.md", "config.json")
FORMAT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # files of `save_to_disk`; not reported
SHOWN = 6  # names of files in a message


class File(NamedTuple):
    path: Path
    name: str  # relative to the folder
    kind: str  # name of its reader


class Folder(NamedTuple):
    """Training files and validation files (none: every n-th document validates). skipped: {reason: names}."""

    root: Path
    train: list[File]
    validation: list[File]
    skipped: dict[str, list[str]]

    def describe(self) -> str | None:
        """One line on what is read and what is not; None if there is nothing to report."""
        kinds = Counter(file.kind for file in [*self.train, *self.validation])
        if len(kinds) < 2 and not self.validation and not self.skipped:
            return None
        parts = [f"trains on {_listed(self.train)}"]
        if self.validation:
            parts.append(f"validates on {_listed(self.validation)}")
        return f"{self.root}: {'; '.join(parts + _skips(self.skipped))}"


def _skips(skipped: dict[str, list[str]]) -> list[str]:
    return [f"skips {shown(names)} ({reason})" for reason, names in skipped.items()]


def _listed(found: list[File]) -> str:
    kinds = Counter(file.kind for file in found)
    counts = ", ".join(f"{count} of {kind}" for kind, count in sorted(kinds.items()))
    return f"{len(found)} file(s) ({counts}: {shown([file.name for file in found])})"


def shown(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def walk(root: Path) -> Iterator[Path]:
    """Every file under a folder, sorted by path. Follows links (each folder once) and skips hidden files."""
    seen = set()

    def enter(folder: str) -> Iterator[Path]:
        status = os.stat(folder)
        if (key := (status.st_dev, status.st_ino)) in seen:
            return
        seen.add(key)
        for entry in os.scandir(folder):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from enter(entry.path)
            else:
                yield Path(entry.path)

    try:
        yield from sorted(enter(str(root)))
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror or error}); check its permissions") from error


def open_folder(root: Path, field: str, ids: bool) -> Folder:
    """Decides which files of a folder are for training and which for validation.

    Args:
        field: see data.field. ids: whether a tokenizer is named that files of token ids can be made with.

    Raises:
        UserError: no file; no file of text; splits without one to train on.
    """
    found, skipped = _regular(root)
    if not found:
        raise UserError(f"data.path={root} holds no file; put text files there, or name another folder")
    kinds = {path: _kind(path, field) for path in found}
    records = any(kind in ("jsonl", "csv", "table") for kind in kinds.values())
    kept = []
    for path, name in found.items():
        if records and path.name in FORMAT:
            continue
        if (reason := _reason(path, kinds[path], records, ids)) is not None:
            skipped.setdefault(reason, []).append(name)
        else:
            kept.append(PurePath(name))
    groups = splits.grouped(root, kept)
    for split, reason in (("test", "test split"), ("unnamed", "no split in the name, others are train")):
        if groups[split]:
            skipped.setdefault(reason, []).extend(map(str, groups[split]))
    if not groups["train"]:
        raise UserError(f"data.path={root} has no file to train on: it {'; '.join(_skips(skipped))}; name a file")
    as_files = lambda paths: [File(root / path, path.as_posix(), kinds[root / path]) for path in paths]  # noqa: E731
    return Folder(root, as_files(groups["train"]), as_files(groups["validation"]), skipped)


def _regular(root: Path) -> tuple[dict[Path, str], dict[str, list[str]]]:
    """({path: name} of the regular files without duplicates, {reason: names} of the others)"""
    found, skipped, seen = {}, {}, {}
    for path in walk(root):
        name = path.relative_to(root).as_posix()
        try:
            status = path.stat()
        except OSError:
            skipped.setdefault("broken link", []).append(name)
            continue
        if not stat.S_ISREG(status.st_mode):
            skipped.setdefault("no regular file", []).append(name)
        elif (first := seen.setdefault((status.st_dev, status.st_ino), name)) != name:
            skipped.setdefault(f"the same file as {first}", []).append(name)
        else:
            found[path] = name
    return found, skipped


def _kind(path: Path, field: str) -> str:
    found = readers.kind(path)
    if files.suffix(path) == ".json" and (path.name in FORMAT or not jsonl.holds_records(path, field)):
        return "text"
    return found


def _reason(path: Path, kind: str, records: bool, ids: bool) -> str | None:
    """The reason to skip a file, or None."""
    if records and path.name.lower() in ABOUT:
        return "about the data"
    if kind == "tokens" and not ids:
        return "token ids; set data.tokenizer to the file that they were made with"
    if path.suffix.lower() == ".arrow":
        if path.name.startswith("cache-"):
            return "a cache of the datasets library"
        if path.name not in _saved(path.parent / "state.json", path.name):
            return "not in state.json beside it"
    return None


def _saved(state: Path, name: str) -> list[str]:
    """The .arrow files of a folder written by `save_to_disk`; `name` if it is not such a folder."""
    if not state.is_file():
        return [name]
    try:
        return [file["filename"] for file in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise UserError(f"{state} cannot be read ({error!r}); save the dataset again with save_to_disk") from error
