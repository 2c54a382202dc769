"""The token cache on disk: memory-mapped entries; the least recently used are removed when the cache grows too large.

An entry is a folder named by a hash of its inputs (the source's names, sizes and modification times, and the tokenizer):

    meta.json     format, dtype, counts, fingerprint; its modification time is when the entry was last used
    tokens.bin    every document's tokens, end to end, without boundaries: uint8, uint16 or uint32
    offsets.npy   [documents + 1] int64: document i is tokens[offsets[i]:offsets[i + 1]]
    n_bytes.npy   [documents] int64: UTF-8 bytes of each document's text
    digests.npy   [documents] uint64: a hash of each document's tokens
    ids.jsonl     one JSON string a line: the documents' ids

An entry is written under a temporary name and renamed when complete. So a crash leaves no partial entry, and two processes can
write the same entry at the same time.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxseq.data import files
from jaxseq.errors import UserError
from jaxseq.plain_files import reads_npy_header

FORMAT = 2
LIMIT_GB = 20.0
DRAFT = "draft-"
DRAFT_LIFE = 7 * 86400  # seconds without a change after which an unfinished entry counts as crashed
ARRAYS = ("offsets", "n_bytes", "digests")
_NAME = re.compile(r"[0-9a-f]{32}")

Found = tuple[dict, dict[str, np.ndarray], Callable[[], list[str]]]


class CacheEntry(NamedTuple):
    """size: bytes on disk. used: seconds since 1970 when it was last used."""

    path: Path
    source: str
    tokenizer: str
    tokens: int
    size: int
    used: float


def root(folder: str | None = None) -> Path:
    """The cache's folder: `folder`, or ~/.cache/jaxseq (under XDG_CACHE_HOME if that is set)."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(folder or f"{home}/jaxseq").expanduser()


def entry(folder: str | None, key: list) -> Path:
    """The path of the entry for `key`, whether or not it exists."""
    return root(folder) / hashlib.blake2b(json.dumps([FORMAT, *key]).encode(), digest_size=16).hexdigest()


def read(entry: Path) -> Found | None:
    """(meta, arrays, ids) of an entry, memory-mapped; marks it as used.

    None if there is no entry or its files do not have the sizes recorded in it.
    """
    try:
        meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
        tokens_path, dtype = entry / "tokens.bin", np.dtype(meta["dtype"])
        if meta["format"] != FORMAT or tokens_path.stat().st_size != meta["tokens"] * dtype.itemsize:
            return None
        with reads_npy_header():
            arrays = {name: np.load(entry / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS}
        count, offsets = meta["documents"], arrays["offsets"]
        if [len(array) for array in arrays.values()] != [count + 1, count, count] or offsets[-1] != meta["tokens"]:
            return None
        tokens = np.memmap(tokens_path, dtype, "r", shape=(meta["tokens"],)) if meta["tokens"] else np.zeros(0, dtype)
    except (OSError, ValueError, KeyError):
        return None
    with contextlib.suppress(OSError):  # another user's cache may be read-only
        os.utime(entry / "meta.json")

    def ids() -> list[str]:
        with (entry / "ids.jsonl").open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    return meta, {"tokens": tokens} | arrays, ids


class Draft:
    """An entry that is being written."""

    def __init__(self, path: Path):
        self._path, self._count, self._documents = path, 0, 0

    def __enter__(self) -> "Draft":
        self._tokens = (self._path / "tokens.bin").open("wb")
        self._ids = (self._path / "ids.jsonl").open("w", encoding="utf-8")
        return self

    def __exit__(self, *_) -> None:
        self._tokens.close()
        self._ids.close()

    def add(self, name: str, tokens: np.ndarray) -> None:
        self._tokens.write(np.ascontiguousarray(tokens).data)
        self._ids.write(json.dumps(name) + "\n")
        self._count += len(tokens)
        self._documents += 1

    def finish(self, arrays: dict[str, np.ndarray], told: dict) -> None:
        """arrays: by the names in ARRAYS. told: fields for meta.json."""
        self.__exit__()
        for name in ARRAYS:
            np.save(self._path / f"{name}.npy", arrays[name])
        meta = {"format": FORMAT, "documents": self._documents, "tokens": self._count, **told}
        (self._path / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        for path in self._path.iterdir():  # otherwise the rename may reach the disk before the data
            with path.open("rb") as stream:
                os.fsync(stream.fileno())


def write(entry: Path, fill: Callable[[Draft], None], limit_gb: float) -> None:
    """Write the entry under a temporary name, rename it, and remove old entries down to the limit."""
    path = entry.parent / f"{DRAFT}{uuid.uuid4().hex}"
    try:
        path.mkdir(parents=True)
        _forget_drafts(entry.parent)
        with Draft(path) as draft:
            fill(draft)
        _rename(path, entry)
        if gone := shrink(entry.parent, limit_gb, entry):
            size = sum(one.size for one in gone) / 1e9
            files.say(f"token cache: {len(gone)} entries of {size:.2g} GB are removed, for data.cache_gb={limit_gb:g}")
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"the token cache {entry.parent} cannot be written ({reason}); set data.cache to another folder"
        ) from error
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _rename(draft: Path, entry: Path) -> None:
    if read(entry) is not None:  # another process was faster; its entry is equal
        return
    shutil.rmtree(entry, ignore_errors=True)  # a damaged one
    try:
        os.rename(draft, entry)
    except OSError:
        if read(entry) is None:
            raise


def _forget_drafts(root: Path) -> None:
    """Remove unfinished entries of crashed runs."""
    for path in root.glob(f"{DRAFT}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > DRAFT_LIFE:
                shutil.rmtree(path, ignore_errors=True)


def entries(root: Path) -> list[CacheEntry]:
    """All entries, of any version and including damaged ones, the least recently used first."""
    return sorted(_entries(root), key=lambda entry: entry.used)


def _entries(root: Path) -> Iterator[CacheEntry]:
    if not root.is_dir():
        return
    for path in root.iterdir():
        with contextlib.suppress(OSError):  # another process may remove it meanwhile
            if not _NAME.fullmatch(path.name) or not path.is_dir():
                continue
            size = sum(file.stat().st_size for file in path.iterdir())
            told, meta = {}, path / "meta.json"
            used = (meta if meta.exists() else path).stat().st_mtime
            with contextlib.suppress(ValueError):
                told = json.loads(meta.read_text(encoding="utf-8"))
            told = told if isinstance(told, dict) else {}
            named = [str(told.get(name, "")) for name in ("source", "tokenizer")]
            yield CacheEntry(path, *named, int(told.get("tokens", 0)), size, used)


def shrink(root: Path, limit_gb: float, keep: Path | None = None) -> list[CacheEntry]:
    """Remove the least recently used entries, except `keep`, until the rest is within `limit_gb` (10^9 bytes). Returns them."""
    found = entries(root)
    total, gone = sum(entry.size for entry in found), []
    for entry in found:
        if total <= limit_gb * 1e9:
            break
        if entry.path != keep:
            remove(entry)
            total -= entry.size
            gone.append(entry)
    return gone


def remove(entry: CacheEntry) -> None:
    """Remove an entry. A process that has it open can still read it (on Windows, the entry is not removed)."""
    shutil.rmtree(entry.path, ignore_errors=True)
