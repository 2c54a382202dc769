"""A digest of every file of a checkpoint, written with it and held against it before anything is read.

So a flipped bit, a cut or a missing file is told before its numbers are believed. A checkpoint without digests (of an
earlier version) is taken at its word. In a bucket they are the checksums that the store keeps: nothing is read for them.
"""

import base64
import hashlib
import importlib.util
import json
import logging
from typing import Any

from jaxseq import paths

NAME = "digests.json"
OWN = (NAME, "_CHECKPOINT_METADATA")  # Orbax writes the second once more as it commits, and nothing is read from it
SHA256, CRC32C = "sha256", "crc32c"
log = logging.getLogger(__name__)


class Damaged(Exception):
    """The message says which file of a checkpoint is not what was saved."""


def write(folder: Any) -> None:
    """Digests of all files below `folder`, beside them, on disk when this returns."""
    if paths.is_remote(folder):
        kind, found = CRC32C, paths.checksums(folder)
    else:
        kind, found = SHA256, {name: digest(folder / name, SHA256) for name in paths.files(folder) if name not in OWN}
    text = json.dumps({kind: {name: value for name, value in found.items() if name not in OWN}}, indent=1)
    paths.write(folder / NAME, text, sync=True)


def digest(path: Any, kind: str) -> str:
    """The digest of a file that is read for it."""
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
    """Raises Damaged when a file below `folder` is missing or not the one that was saved."""
    if not has(folder):
        return
    try:
        told = dict(json.loads((folder / NAME).read_text(encoding="utf-8")))
        kind = CRC32C if CRC32C in told else SHA256
        wanted = dict(told[kind])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise Damaged(f"{NAME} cannot be read") from None
    if kind == CRC32C and not paths.is_remote(folder) and importlib.util.find_spec("google_crc32c") is None:
        log.info("%s was copied from a bucket, and its checksums cannot be computed here; %s", folder, paths.EXTRA)
        return
    kept = paths.checksums(folder) if kind == CRC32C and paths.is_remote(folder) else None
    for name, saved in wanted.items():
        try:
            found = digest(folder / name, kind) if kept is None else kept.get(name, "")
        except OSError as error:
            raise Damaged(f"{name} cannot be read: {error.strerror or error}") from None
        if found != saved:
            raise Damaged(f"{name} is not what was saved" if found else f"{name} is missing")
