"""Training on a corpus while it is read (data.stream): memory and the time to the first step do not depend on its size.

Files are read in an order that depends on seed and epoch, in blocks of about BLOCK tokens. Documents and rows of a block are
shuffled and packed as `jaxseq.data.packing` does for a whole corpus; the last row of a block is padded. Documents of different
blocks are not shuffled together, and nothing is counted in advance.

A block of a mixture has documents of all parts, in proportion to weight x bytes: while a part of weight 1 is read once, a part
of weight w is read about w times.

If the source has no validation split, about one document in data.validation_every is held out, selected by a hash of its file
and its position there. Before the first step, held-out documents are read, in a fixed order, until they have about eval.tokens
tokens.
"""

import concurrent.futures
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxseq.data import damage, files
from jaxseq.data.batching import STATE_VERSION, Transform, random_of
from jaxseq.data.corpora import SPLITS, Corpus, Documents
from jaxseq.data.packing import PackedRows
from jaxseq.data.readers import Document, TokenDocument
from jaxseq.data.sources import Source, source
from jaxseq.data.store import Store, in_memory
from jaxseq.data.tokenizers import ByteTokenizer, Tokenizer
from jaxseq.errors import UserError

BLOCK = 1 << 22  # tokens that are in memory and shuffled together

Read = Iterator[Document | TokenDocument]


class Lane(NamedTuple):
    """A part of a mixture, or a whole source (name ""). units: (name, read) of each of its files."""

    name: str
    units: tuple[tuple[str, Callable[[], Read]], ...]
    share: float  # of the tokens of a block


class Cursor(NamedTuple):
    """Position in a lane: epoch, index into the shuffled units of that epoch, number of documents of the unit already read."""

    epoch: int = 0
    unit: int = 0
    document: int = 0


class StreamedCorpus(NamedTuple):
    """The counterpart of `Corpus` for streamed data. validation: the documents scored during training."""

    name: str
    tokenizer: Tokenizer
    validation: Documents
    fingerprint: str
    lanes: tuple[Lane, ...]
    every: int  # data.validation_every; 0 if the source has a validation split
    files: int
    size: int
    skipped: Callable[[], list[str]] = list  # descriptions of the records skipped so far

    @property
    def lossy(self) -> str | None:
        return self.validation.store.lossy

    @property
    def damaged(self) -> int:
        """The number of records skipped so far, see data.skip_records."""
        return len(self.skipped())

    def split(self, name: str) -> Documents:
        if name not in SPLITS:
            raise UserError(f"split {name!r} is unknown; choose one of {', '.join(SPLITS)}")
        if name == "train":
            raise UserError("with data.stream the training documents are not kept; set data.stream=false to score them")
        if not len(self.validation):
            raise UserError(f"{self.name} has no validation documents; set data.validation_every to 2 or more")
        return self.validation

    documents = Corpus.documents


def stream(config: ConfigDict, tokens: int, tokenizer: Tokenizer) -> StreamedCorpus:
    """Opens a source for streaming and reads its validation documents.

    Args:
        config: the data section, as for `jaxseq.data.corpus`.
        tokens: about how many tokens of validation documents to read; 0: all, which may read the whole source.

    Raises:
        UserError: wrong input, as described by the message.
    """
    opened = source(config, None if isinstance(tokenizer, ByteTokenizer) else tokenizer.boundary)
    every = 0 if opened.validation else config.validation_every
    if every < 0 or every == 1:
        raise UserError(f"data.validation_every={every} leaves nothing to train on; set 2 or more, or 0 for no validation")
    lanes = _lanes(opened)
    held = _first(_held(opened, lanes, every), tokens, tokenizer, opened)
    stamp = [opened.stamp, opened.weights, tokenizer.fingerprint, every, BLOCK]
    fingerprint = hashlib.blake2b(json.dumps(stamp).encode(), digest_size=16).hexdigest()
    validation = Documents(held, np.arange(len(held)), tokenizer.boundary, tokenizer.start)
    count = sum(len(lane.units) for lane in lanes)

    def skipped() -> list[str]:
        return opened.skipped() + (opened.validation.skipped() if opened.validation else [])

    return StreamedCorpus(opened.name, tokenizer, validation, fingerprint, lanes, every, count, opened.size, skipped)


def _lanes(opened: Source) -> tuple[Lane, ...]:
    parts = opened.parts or {"": opened}
    weights = {name: (opened.weights or {}).get(name, 1.0) * max(part.size, 1) for name, part in parts.items()}
    total = sum(weights.values())
    return tuple(Lane(name, part.units or (("", part.read),), weights[name] / total) for name, part in parts.items())


def holds_out(unit: str, number: int, every: int) -> bool:
    """Whether document `number` of a unit is held out for validation."""
    digest = hashlib.blake2b(f"{unit}:{number}".encode(), digest_size=8).digest()
    return bool(every) and int.from_bytes(digest, "little") % every == 0


def _held(opened: Source, lanes: tuple[Lane, ...], every: int) -> Read:
    """The validation documents: the source's validation split, else those held out of its files, in a fixed shuffled order."""
    if opened.validation:
        yield from opened.validation.read()
        return
    units = [(lane, unit) for lane in lanes for unit in range(len(lane.units))] if every else []
    for at in np.random.default_rng(0).permutation(len(units)):
        lane, unit = units[at]
        name, read = lane.units[unit]
        for number, document in enumerate(read()):
            if holds_out(f"{lane.name}/{name}", number, every):
                yield document


def _first(documents: Read, tokens: int, tokenizer: Tokenizer, opened: Source) -> Store:
    """The first documents with at least `tokens` tokens together; all documents for 0."""

    def enough() -> Read:
        count = 0
        for document in documents:
            yield document
            count += len(tokenizer.encode(document.text)) if isinstance(document, Document) else len(document.ids)
            if tokens and count >= tokens:
                return

    return in_memory(opened.name, enough(), tokenizer)


class _Blocks:
    """The blocks of a stream, one after another, with documents of each lane in proportion to its share."""

    def __init__(self, stream: StreamedCorpus, seed: int, cursors: list[Cursor]):
        self.stream, self.seed, self.cursors, self.reported = stream, seed, cursors, 0
        self.passes = [self._read(lane, at, cursor) for at, (lane, cursor) in enumerate(zip(stream.lanes, cursors, strict=True))]

    def _read(self, lane: Lane, at: int, cursor: Cursor) -> Iterator[tuple[Document | TokenDocument | None, Cursor]]:
        """Endless: (training document of a lane, cursor after it) from a cursor on, and (None, cursor) after each epoch."""
        found = True
        while found:
            found = cursor.unit > 0 or cursor.document > 0  # the rest of an epoch may have no documents
            order = np.random.default_rng([self.seed, at, cursor.epoch]).permutation(len(lane.units))
            for unit in range(cursor.unit, len(order)):
                name, read = lane.units[order[unit]]
                for number, document in enumerate(read()):
                    if number < cursor.document or not len(document[1]):
                        continue
                    if not holds_out(f"{lane.name}/{name}", number, self.stream.every):
                        found = True
                        yield document, Cursor(cursor.epoch, unit, number + 1)
                cursor = Cursor(cursor.epoch, unit + 1)
            cursor = Cursor(cursor.epoch + 1)
            yield None, cursor
        name = lane.name or self.stream.name
        raise UserError(f"{name} has no training documents; give more documents, or raise data.validation_every")

    def next(self) -> tuple[Documents, list[Cursor]]:
        """(documents of the next block, cursors after it)"""
        tokenizer, kept = self.stream.tokenizer, []
        alone, size = len(self.stream.lanes) == 1, min(BLOCK, max(1, self.stream.size))
        for at, lane in enumerate(self.stream.lanes):
            wanted = max(1, round(lane.share * size))
            for document, cursor in self.passes[at]:
                self.cursors[at] = cursor
                if document is not None:
                    kept.append(document)
                    wanted -= self._tokens(document)
                if wanted <= 0 or (document is None and alone and kept):
                    break
        held = in_memory(self.stream.name, kept, tokenizer)
        if len(skipped := self.stream.skipped()) > self.reported:
            files.say(damage.describe(self.stream.name, skipped))
            self.reported = len(skipped)
        return Documents(held, np.arange(len(held)), tokenizer.boundary, tokenizer.start), list(self.cursors)

    def _tokens(self, document: Document | TokenDocument) -> int:
        """About how many tokens a document has, at four characters per token unless tokens are bytes."""
        if isinstance(document, TokenDocument):
            return len(document.ids)
        return len(document.text) // (1 if isinstance(self.stream.tokenizer, ByteTokenizer) else 4) + 1


class StreamBatches(Iterator):
    """Endless iterator over batches of packed rows, with the interface of `RowBatches`. A thread prepares the next block. Every
    process reads all documents and keeps its own rows."""

    def __init__(
        self, config, stream: StreamedCorpus, process_index: int, process_count: int, transform: Transform | None = None
    ):
        batch, length = config.train.batch, config.train.length
        if batch % process_count:
            raise UserError(f"train.batch={batch} is not a multiple of the number of processes, {process_count}; set it to one")
        self.stream, self.length, self.seed, self.transform = stream, length, config.data.seed, transform
        self.batch, self.own = batch, batch // process_count
        self.first = process_index * self.own
        self.identity = {"version": STATE_VERSION, "stream": stream.fingerprint, "length": length, "seed": self.seed}
        self.worker = concurrent.futures.ThreadPoolExecutor(1, "stream")
        self._begin({"row": 0, "cursors": [list(Cursor()) for _ in stream.lanes], "used": 0, "block": 0})

    def _begin(self, state: dict[str, Any]) -> None:
        cursors = [Cursor(*cursor) for cursor in state["cursors"]]
        self.row, self.used, self.block = state["row"], state["used"], state["block"]
        self.start, self.rows, self.coming = list(cursors), None, None
        self.blocks = _Blocks(self.stream, self.seed, cursors)

    def _take(self) -> None:
        """Makes the next block current, and starts to prepare the one after it."""
        coming = self.coming or self.worker.submit(self.blocks.next)
        documents, self.behind = coming.result()
        self.coming = self.worker.submit(self.blocks.next)
        seed = int(np.random.SeedSequence([self.seed, 3, self.block]).generate_state(1)[0])
        self.rows = PackedRows(documents, self.length, seed)
        self.order = np.random.default_rng([self.seed, 4, self.block]).permutation(len(self.rows))

    def __next__(self) -> dict[str, np.ndarray]:
        rows = []
        for number in range(self.batch):
            if self.rows is None:
                self._take()
            if self.used == len(self.order):
                self.start, self.used, self.block = self.behind, 0, self.block + 1
                self._take()
            if self.first <= number < self.first + self.own:
                row = self.rows[int(self.order[self.used])]
                rows.append(self.transform(row, random_of(self.seed, self.row)) if self.transform else row)
            self.used, self.row = self.used + 1, self.row + 1
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def state(self) -> dict[str, Any]:
        """The position of the next row, as JSON data. `restore` reads the block again, and also the beginnings of the files that
        the block starts in, but nothing else."""
        cursors = [list(cursor) for cursor in self.start]
        return {**self.identity, "row": self.row, "block": self.block, "used": self.used, "cursors": cursors}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues with the row after `state`. Raises UserError if that is a state of other data."""
        changed = [name for name, value in self.identity.items() if state.get(name) != value]
        if changed:
            raise UserError(
                f"the data has changed since the checkpoint ({', '.join(changed)}); "
                "resume with the same data and train.length, or start a new run with train.init"
            )
        self._begin(state)
