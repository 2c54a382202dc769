"""Tokenised documents, in memory if small, else in a memory-mapped cache (see `cache`)."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxseq.data import cache, damage, lossless, progress
from jaxseq.data.readers import Document, TokenDocument
from jaxseq.data.sources import Source
from jaxseq.data.tokenizers import ByteTokenizer, Tokenizer
from jaxseq.errors import UserError

CACHED_ABOVE = 1 << 20  # bytes on disk above which tokens are cached
CACHED_ABOVE_AS_BYTES = 64 << 20  # the same for the byte tokenizer, which is fast
BATCH_BYTES = 2 << 20  # text tokenised at a time


class Store:
    """Documents' tokens, without boundaries.

    tokens: [total] unsigned. offsets: [documents + 1] int64. n_bytes: [documents] int64, of UTF-8. digests: [documents] uint64,
    equal for equal documents. ids(): the documents' names. fingerprint: a hash of tokens and offsets. lossy: what the tokenizer
    loses, in words, or None. damaged: the number of records of the source that were skipped; told: a line about them.
    """

    def __init__(
        self, tokens: np.ndarray, offsets: np.ndarray, n_bytes: np.ndarray, digests: np.ndarray, ids: Callable[[], list[str]],
        fingerprint: str, lossy: str | None, damaged: int = 0, told: str = "",
    ):  # fmt: skip
        self.tokens, self.offsets, self.n_bytes, self.digests = tokens, offsets, n_bytes, digests
        self._ids, self.fingerprint, self.lossy = ids, fingerprint, lossy
        self.damaged, self.told = damaged, told

    def __len__(self) -> int:
        return len(self.n_bytes)

    def __getitem__(self, document: int) -> np.ndarray:
        return self.tokens[self.offsets[document] : self.offsets[document + 1]]

    def ids(self) -> list[str]:
        return self._ids()


def store(source: Source, tokenizer: Tokenizer, folder: str | None = None, limit_gb: float = cache.LIMIT_GB) -> Store:
    """Tokenise a source, or take it from the cache.

    Args:
        folder: of the cache. None: ~/.cache/jaxseq (or under XDG_CACHE_HOME), used only for sources of more than 64 MiB with the
            byte tokenizer, or more than 1 MiB with another.
        limit_gb: the maximum size of the cache; the least recently used entries are deleted first.

    Raises:
        UserError: errors of the source; a source without text; a cache folder that cannot be written.
    """
    limit = CACHED_ABOVE_AS_BYTES if isinstance(tokenizer, ByteTokenizer) else CACHED_ABOVE
    if folder is None and source.size <= limit:
        return _gathered(_read(source, tokenizer), tokenizer, source)
    entry = cache.entry(folder, [source.name, source.stamp, tokenizer.fingerprint])
    found = cache.read(entry)
    if found is None:
        cache.write(entry, lambda draft: _fill(draft, source, tokenizer), limit_gb)
        found = cache.read(entry)
    if found is None:
        raise RuntimeError(f"the cache entry {entry} was written but cannot be read")
    meta, arrays, ids = found
    more = {name: meta[name] for name in ("damaged", "told") if name in meta}
    return Store(**arrays, ids=ids, fingerprint=meta["fingerprint"], lossy=meta["lossy"], **more)


def _damage(source: Source) -> dict:
    """The Store fields about records that the last pass skipped; {} if there were none."""
    skipped = source.skipped()
    return {"damaged": len(skipped), "told": damage.describe(source.name, skipped)} if skipped else {}


class _Tokenised(NamedTuple):
    """tokens: without a boundary. size: bytes of text. lossy: what the tokenizer loses of the document, if that was checked."""

    id: str
    tokens: np.ndarray
    size: int
    lossy: str | None


def _tokenised(
    name: str, documents: Iterable[Document | TokenDocument], tokenizer: Tokenizer, advance: Callable[[int], None]
) -> Iterator[_Tokenised]:
    """Each non-empty document, tokenised. advance: called with the bytes of text after each batch."""
    batch: list[Document | TokenDocument] = []
    size = 0

    def flush() -> Iterator[_Tokenised]:
        texts = [document.text for document in batch if isinstance(document, Document)]
        lossy, encoded = lossless.difference(tokenizer, texts), iter(tokenizer.encode_batch(texts))
        for document in batch:
            if isinstance(document, Document):
                yield _Tokenised(document.id, next(encoded), len(document.text.encode()), lossy)
            else:
                yield _given(name, document, tokenizer)

    for document in documents:
        length = len(document[1])  # characters or ids
        if not length:
            continue
        batch.append(document)
        size += length
        if size >= BATCH_BYTES:
            total = 0
            for found in flush():
                total += found.size
                yield found
            advance(total)
            batch, size = [], 0
    yield from flush()


def _read(source: Source, tokenizer: Tokenizer) -> Iterator[_Tokenised]:
    """All documents of a source, tokenised. Raises UserError if it has no text."""
    count = 0
    with progress.bar("tokenising", source.size if source.plain else None) as advance:
        for count, document in enumerate(_tokenised(source.name, source.read(), tokenizer, advance), 1):  # noqa: B007
            yield document
    if not count:
        raise UserError(f"{source.name} has no text; give a source with at least one document that is not empty")


def _given(name: str, document: TokenDocument, tokenizer: Tokenizer) -> _Tokenised:
    """A document from a file of token ids."""
    if int(document.ids.max()) >= tokenizer.vocab:
        raise UserError(
            f"{name} has the token id {document.ids.max()} (at {document.id}), but the largest id of {tokenizer.name} is "
            f"{tokenizer.vocab - 1}; set data.tokenizer to the tokenizer that made the ids"
        )
    return _Tokenised(document.id, document.ids.astype(tokenizer.storage), len(tokenizer.decode(document.ids).encode()), None)


class _Hash:
    """Fingerprint of a corpus: a hash of the tokens, then of the offsets."""

    def __init__(self):
        self._hash = hashlib.blake2b(digest_size=16)

    def update(self, array: np.ndarray) -> None:
        self._hash.update(np.ascontiguousarray(array).data)

    def finish(self, offsets: np.ndarray) -> str:
        self.update(offsets)
        return self._hash.hexdigest()


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def _digest(tokens: np.ndarray) -> int:
    return int.from_bytes(hashlib.blake2b(np.ascontiguousarray(tokens).data, digest_size=8).digest(), "little")


class _Counts:
    """The arrays of a Store other than tokens, collected document by document."""

    def __init__(self):
        self.lengths, self.n_bytes, self.digests, self.lossy, self._hash = [], [], [], None, _Hash()

    def add(self, document: _Tokenised) -> None:
        self.lengths.append(len(document.tokens))
        self.n_bytes.append(document.size)
        self.digests.append(_digest(document.tokens))
        self.lossy = self.lossy or document.lossy
        self._hash.update(document.tokens)

    def finish(self) -> tuple[dict[str, np.ndarray], str]:
        """({"offsets", "n_bytes", "digests"}, the fingerprint)"""
        offsets = _offsets(self.lengths)
        arrays = {"n_bytes": np.asarray(self.n_bytes, np.int64), "digests": np.asarray(self.digests, np.uint64)}
        return {"offsets": offsets} | arrays, self._hash.finish(offsets)


def in_memory(name: str, documents: Iterable[Document | TokenDocument], tokenizer: Tokenizer) -> Store:
    """A store of these documents of the source `name`; there may be none."""
    return _gathered(_tokenised(name, documents, tokenizer, lambda size: None), tokenizer)


def _gathered(documents: Iterable[_Tokenised], tokenizer: Tokenizer, source: Source | None = None) -> Store:
    pieces, ids, counts = [np.zeros(0, tokenizer.storage)], [], _Counts()
    for document in documents:
        pieces.append(document.tokens)
        ids.append(document.id)
        counts.add(document)
    arrays, fingerprint = counts.finish()
    more = {"fingerprint": fingerprint, "lossy": counts.lossy, **(_damage(source) if source else {})}
    return Store(np.concatenate(pieces), **arrays, ids=lambda: ids, **more)


def _fill(draft: cache.Draft, source: Source, tokenizer: Tokenizer) -> None:
    counts = _Counts()
    for document in _read(source, tokenizer):
        draft.add(document.id, document.tokens)
        counts.add(document)
    arrays, fingerprint = counts.finish()
    told = {"source": source.name, "tokenizer": tokenizer.name, "fingerprint": fingerprint, "lossy": counts.lossy}
    draft.finish(arrays, {"dtype": tokenizer.storage.name, **told, **_damage(source)})
