"""Digests of the files of a checkpoint: written with it, and checked before it is read.

They detect flipped bits and truncated or missing files. A checkpoint without digests (of an earlier version) is not checked.
In a bucket they are the checksums of the object store, which it reports without reading the files.
"""

import base64
import hashlib
import importlib.util
import json
import logging
from typing import Any

from jaxseq import paths

NAME = "digests.json"
OWN = (NAME, "_CHECKPOINT_METADATA")  # Orbax rewrites the second when it commits, and nothing reads it
SHA256, CRC32C = "sha256", "crc32c"
log = logging.getLogger(__name__)


class Damaged(Exception):
    """A file of a checkpoint, named in the message, differs from what was saved."""


def write(folder: Any) -> None:
    """Writes the digests of all files below `folder` to folder/NAME, and syncs it to disk."""
    if paths.is_remote(folder):
        kind, found = CRC32C, paths.checksums(folder)
    else:
        kind, found = SHA256, {name: digest(folder / name, SHA256) for name in paths.files(folder) if name not in OWN}
    text = json.dumps({kind: {name: value for name, value in found.items() if name not in OWN}}, indent=1)
    paths.write(folder / NAME, text, sync=True)


def digest(path: Any, kind: str) -> str:
    """The digest of a file, computed by reading it."""
    with path.open("rb") as file:
        if kind == SHA256:
            return hashlib.file_digest(file, SHA256).hexdigest()
        import google_crc32c

        total = google_crc32c.Checksum()
        while piece := file.read(1 << 20):
            total.update(piece)
        return base64.b64encode(total.digest()).decode()


def has(folder: Any) -> bool:
    return (folder / NAME).exists()


def check(folder: Any) -> None:
    """Raises Damaged if a file below `folder` is missing or differs from what was saved."""
    if not has(folder):
        return
    try:
        told = dict(json.loads((folder / NAME).read_text(encoding="utf-8")))
        kind = CRC32C if CRC32C in told else SHA256
        wanted = dict(told[kind])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise Damaged(f"{NAME} cannot be read") from None
    if kind == CRC32C and not paths.is_remote(folder) and importlib.util.find_spec("google_crc32c") is None:
        log.info("%s, a copy from a bucket, is not checked: its checksums cannot be computed here; %s", folder, paths.EXTRA)
        return
    kept = paths.checksums(folder) if kind == CRC32C and paths.is_remote(folder) else None
    for name, saved in wanted.items():
        try:
            found = digest(folder / name, kind) if kept is None else kept.get(name, "")
        except OSError as error:
            raise Damaged(f"{name} cannot be read: {error.strerror or error}") from None
        if found != saved:
            raise Damaged(f"{name} differs from what was saved" if found else f"{name} is missing")
