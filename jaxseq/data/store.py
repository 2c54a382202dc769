"""Tokenised documents: in memory when small, in a memory-mapped cache when not.

A cache entry is a folder named by a hash of what went in (the sources' names, sizes and modification times, the
tokenizer):

    meta.json     format, dtype, counts, fingerprint
    tokens.bin    every document's tokens, end to end, without boundaries: uint8, uint16 or uint32
    offsets.npy   [documents + 1] int64: document i is tokens[offsets[i]:offsets[i + 1]]
    bytes.npy     [documents] int64: UTF-8 bytes of each document's text
    ids.jsonl     one JSON string a line: the documents' ids

It is written under a temporary name and renamed when complete, so that a crash leaves nothing that could be taken for
an entry, and two processes that write the same one do not disturb each other.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from jaxseq.data.sources import Document, Source
from jaxseq.data.tokenizers import ByteTokenizer, Tokenizer
from jaxseq.errors import UserError

FORMAT = 1
CACHED_ABOVE = 1 << 20  # bytes on disk above which tokens are cached
CACHED_ABOVE_AS_BYTES = 64 << 20  # bytes cost no tokenisation
BATCH_BYTES = 8 << 20  # text tokenised at a time
PATIENCE = 1.5  # seconds before a progress bar appears
DRAFT = "draft-"
DRAFT_LIFE = 7 * 86400  # seconds without a change after which an unfinished entry is a crashed one


class Store:
    """Documents' tokens, without boundaries.

    tokens: [total] unsigned. offsets: [documents + 1] int64. n_bytes: [documents] int64, UTF-8. ids(): the documents'
    names. fingerprint: a hash of the tokens and of where documents end.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        offsets: np.ndarray,
        n_bytes: np.ndarray,
        ids: Callable[[], list[str]],
        fingerprint: str,
    ):
        self.tokens, self.offsets, self.n_bytes, self._ids, self.fingerprint = (
            tokens,
            offsets,
            n_bytes,
            ids,
            fingerprint,
        )

    def __len__(self) -> int:
        return len(self.n_bytes)

    def __getitem__(self, document: int) -> np.ndarray:
        return self.tokens[self.offsets[document] : self.offsets[document + 1]]

    def ids(self) -> list[str]:
        return self._ids()


def store(source: Source, tokenizer: Tokenizer, cache: str | None = None) -> Store:
    """Tokenise a source, or take it from the cache.

    Args:
        cache: folder of the cache. None: ~/.cache/jaxseq (or under XDG_CACHE_HOME), and only for what is worth it,
        that is
            more than 64 MiB of files as bytes, or more than 1 MiB with another tokenizer.

    Raises:
        UserError: what the source raises; a source without text; a cache folder that cannot be written.
    """
    limit = CACHED_ABOVE_AS_BYTES if isinstance(tokenizer, ByteTokenizer) else CACHED_ABOVE
    if cache is None and source.size <= limit:
        return _in_memory(source, tokenizer)
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    root = Path(cache or f"{home}/jaxseq").expanduser()
    key = json.dumps([FORMAT, source.name, source.stamp, tokenizer.fingerprint])
    entry = root / hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    found = _open(entry)
    if found is None:
        _write(entry, source, tokenizer)
        found = _open(entry)
    if found is None:
        raise RuntimeError(f"the cache entry {entry} was written and cannot be read back")
    return found


def _tokenised(source: Source, tokenizer: Tokenizer) -> Iterator[tuple[Document, np.ndarray, int]]:
    """Each document with its tokens (without a boundary) and its size in bytes."""
    batch: list[Document] = []
    size = count = 0

    def flush() -> Iterator[tuple[Document, np.ndarray, int]]:
        for document, tokens in zip(batch, tokenizer.encode_batch([d.text for d in batch]), strict=True):
            yield document, tokens, len(document.text.encode())

    with _progress(source) as advance:
        for document in source.read():
            if not document.text:
                continue
            count += 1
            batch.append(document)
            size += len(document.text)
            if size >= BATCH_BYTES:
                yield from flush()
                advance(sum(len(document.text.encode()) for document in batch))
                batch, size = [], 0
        yield from flush()
    if not count:
        raise UserError(f"{source.name} holds no text; give a source with at least one document that is not empty")


@contextlib.contextmanager
def _progress(source: Source) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, for those who wait longer than PATIENCE. Yields advance(bytes of text)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    task = progress.add_task("tokenising", total=source.size if source.plain else None)
    began, shown = time.monotonic(), False

    def advance(count: int) -> None:
        nonlocal shown
        if not shown and time.monotonic() - began > PATIENCE:
            progress.start()
            shown = True
        progress.advance(task, count)

    try:
        yield advance
    finally:
        if shown:
            progress.stop()


class _Hash:
    """Fingerprint of a corpus: tokens in order, then where documents end."""

    def __init__(self):
        self._hash = hashlib.blake2b(digest_size=16)

    def update(self, array: np.ndarray) -> None:
        self._hash.update(np.ascontiguousarray(array).data)

    def finish(self, offsets: np.ndarray) -> str:
        self.update(offsets)
        return self._hash.hexdigest()


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def _in_memory(source: Source, tokenizer: Tokenizer) -> Store:
    pieces, ids, n_bytes = [], [], []
    for document, tokens, size in _tokenised(source, tokenizer):
        pieces.append(tokens)
        ids.append(document.id)
        n_bytes.append(size)
    tokens, offsets = np.concatenate(pieces), _offsets([len(piece) for piece in pieces])
    digest = _Hash()
    digest.update(tokens)
    return Store(tokens, offsets, np.asarray(n_bytes, np.int64), lambda: ids, digest.finish(offsets))


def _open(entry: Path) -> Store | None:
    """The cache entry, memory-mapped; None if there is none or its files have not the sizes that it tells."""
    try:
        meta = json.loads((entry / "meta.json").read_text())
        tokens_path, dtype = entry / "tokens.bin", np.dtype(meta["dtype"])
        if meta["format"] != FORMAT or tokens_path.stat().st_size != meta["tokens"] * dtype.itemsize:
            return None
        offsets = np.load(entry / "offsets.npy", mmap_mode="r", allow_pickle=False)
        n_bytes = np.load(entry / "bytes.npy", mmap_mode="r", allow_pickle=False)
        if len(offsets) != meta["documents"] + 1 or len(n_bytes) != meta["documents"] or offsets[-1] != meta["tokens"]:
            return None
        tokens = np.memmap(tokens_path, dtype, "r", shape=(meta["tokens"],)) if meta["tokens"] else np.zeros(0, dtype)
    except (OSError, ValueError, KeyError):
        return None

    def ids() -> list[str]:
        with (entry / "ids.jsonl").open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    return Store(tokens, offsets, n_bytes, ids, meta["fingerprint"])


def _write(entry: Path, source: Source, tokenizer: Tokenizer) -> None:
    """Make the entry under a temporary name, then rename it."""
    draft = entry.parent / f"{DRAFT}{uuid.uuid4().hex}"
    try:
        draft.mkdir(parents=True)
        _forget_drafts(entry.parent)
        _fill(draft, source, tokenizer)
        _rename(draft, entry)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"the token cache {entry.parent} cannot be written ({reason}); set data.cache to another folder"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _rename(draft: Path, entry: Path) -> None:
    if _open(entry) is not None:  # another process was faster, and its entry is as good
        return
    shutil.rmtree(entry, ignore_errors=True)  # a damaged one
    try:
        os.rename(draft, entry)
    except OSError:
        if _open(entry) is None:
            raise


def _forget_drafts(root: Path) -> None:
    """Remove what crashed runs left behind."""
    for path in root.glob(f"{DRAFT}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > DRAFT_LIFE:
                shutil.rmtree(path, ignore_errors=True)


def _fill(draft: Path, source: Source, tokenizer: Tokenizer) -> None:
    lengths, n_bytes, digest = [], [], _Hash()
    with (
        (draft / "tokens.bin").open("wb") as tokens_file,
        (draft / "ids.jsonl").open("w", encoding="utf-8") as ids_file,
    ):
        for document, tokens, size in _tokenised(source, tokenizer):
            tokens_file.write(tokens.data)
            digest.update(tokens)
            ids_file.write(json.dumps(document.id) + "\n")
            lengths.append(len(tokens))
            n_bytes.append(size)
    offsets = _offsets(lengths)
    np.save(draft / "offsets.npy", offsets)
    np.save(draft / "bytes.npy", np.asarray(n_bytes, np.int64))
    meta = {
        "format": FORMAT,
        "source": source.name,
        "tokenizer": tokenizer.name,
        "dtype": tokenizer.storage.name,
        "documents": len(lengths),
        "tokens": int(offsets[-1]),
        "fingerprint": digest.finish(offsets),
    }
    (draft / "meta.json").write_text(json.dumps(meta, indent=1))
    for path in draft.iterdir():  # a rename may reach the disk before the data does
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
