"""Packs documents into rows of equal length by random access: only the requested rows are assembled.

The stream of an epoch is every training document once, [start, tokens...], in an order shuffled by seed and epoch.
Row i holds stream[iT : iT + T]. The target of each token is the next token of its document, or the boundary after the last
one. So a document of n tokens has n + 1 targets, each exactly once per epoch. `pos` restarts at the start of each row and of
each document. The epoch's last row is padded (pos -1, weight 0).

Rows are shuffled too, then batched by `jaxseq.data.batching`.
"""

import functools
import threading

import grain
import numpy as np

from jaxseq.data.batching import RowBatches, Transform
from jaxseq.data.corpora import Corpus, Documents
from jaxseq.errors import UserError


class PackedRows(grain.MapDataset):
    """Row i of the endless sequence of epochs, in the stream's order; len() is the rows of one epoch, ceil(L / T)."""

    def __init__(self, documents: Documents, length: int, seed: int):
        super().__init__()
        self._documents, self._length, self._seed = documents, length, seed
        self.targets = int(documents.lengths.sum())
        self._rows = -(-self.targets // length)
        self._lock = threading.Lock()
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)  # a batch may straddle two epochs

    def __len__(self) -> int:
        return self._rows

    def _shuffled(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(order [N], starts [N + 1]): the documents of an epoch's stream, and the positions of their boundaries in it."""
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._documents))
        return order, np.concatenate([[0], np.cumsum(self._documents.lengths[order])])

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        epoch, row = divmod(index, self._rows)
        with self._lock:
            order, starts = self._order(epoch)
        length, first = self._length, row * self._length
        count = min(length, self.targets - first)  # targets of this row; the rest is padding
        stream = np.full(length + 1, self._documents.start, np.int32)
        ends = np.zeros(length + 1, bool)  # positions where another document starts; as targets, the end of the previous document
        ends[count] = first + count == self.targets
        pos = np.full(length, -1, np.int32)
        pos[:count] = np.arange(count)
        at, end = int(np.searchsorted(starts, first, "right")) - 1, first + count + 1
        while at < len(order) and starts[at] < end:
            start, stop = int(starts[at]), min(int(starts[at + 1]), end)
            inside = max(first, start + 1)  # the document's start token is already set
            if start >= first:
                ends[start - first] = True
            if inside < stop:
                tokens = self._documents.piece(order[at], inside - start - 1, stop - start - 1)
                stream[inside - first : stop - first] = tokens
            if first < start < first + count:
                pos[start - first : count] = np.arange(count - (start - first))
            at += 1
        weights = np.zeros(length, np.float32)
        weights[:count] = 1
        targets = np.where(ends, self._documents.boundary, stream)[1:]
        return {"tokens": stream[:-1], "targets": targets, "pos": pos, "weights": weights}


class Batches(RowBatches):
    """Endless iterator over batches of packed rows; see `batches`. targets_per_epoch: of all processes."""

    def __init__(self, config, corpus: Corpus, process_index: int, process_count: int, transform: Transform | None = None):
        length = config.train.length
        if length < 1 or config.train.batch < 1:
            raise UserError(f"train.batch={config.train.batch} and train.length={length} must both be at least 1; set them")
        rows = PackedRows(corpus.split("train"), length, config.data.seed)
        self.targets_per_epoch = rows.targets
        identity = {"corpus": corpus.fingerprint, "length": length}
        super().__init__(rows, identity, config, process_index, process_count, transform)
