"""A digest of every file of a checkpoint, written with it and held against it before anything is read.

So a flipped bit, a cut or a missing file is told before its numbers are believed. A checkpoint without digests (of an
earlier version) is taken at its word.
"""

import hashlib
import json
import os
from pathlib import Path

NAME = "digests.json"
OWN = (NAME, "_CHECKPOINT_METADATA")  # Orbax writes the second once more as it commits, and nothing is read from it


class Damaged(Exception):
    """The message says which file of a checkpoint is not what was saved."""


def write(folder: Path) -> None:
    """Digests of all files below `folder`, beside them, on disk when this returns."""
    files = {path.relative_to(folder).as_posix(): digest(path) for path in sorted(folder.rglob("*")) if _counts(folder, path)}
    with (folder / NAME).open("w", encoding="utf-8") as file:
        json.dump({"sha256": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _counts(folder: Path, path: Path) -> bool:
    return path.is_file() and path.relative_to(folder).as_posix() not in OWN


def has(folder: Path) -> bool:
    return (folder / NAME).exists()


def check(folder: Path) -> None:
    """Raises Damaged when a file below `folder` is missing or not the one that was saved."""
    if not has(folder):
        return
    try:
        wanted = dict(json.loads((folder / NAME).read_text(encoding="utf-8"))["sha256"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise Damaged(f"{NAME} cannot be read") from None
    for name, saved in wanted.items():
        path = folder / name
        try:
            found = digest(path)
        except OSError as error:
            raise Damaged(f"{name} cannot be read: {error.strerror}") from None
        if found != saved:
            raise Damaged(f"{name} is not what was saved")
