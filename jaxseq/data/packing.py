"""Documents to rows of equal length, by random access: nothing but the rows asked for is ever assembled.

The stream of an epoch is every training document once, [boundary, tokens...], in an order shuffled by seed and epoch,
and one boundary more at its end. Row i is stream[iT : iT + T + 1], so that each of the L tokens but the first (L + 1
with the last boundary) is a target exactly once an epoch, and a document of n ids has n targets: its tokens and the
end of the text. `pos` restarts at a row's start and at every boundary. The epoch's last row is padded (pos -1, weight
0).

Rows are shuffled too, then dealt out in batches without regard to where an epoch ends: a batch may hold the last rows
of one epoch and the first of the next, so that no row is dropped or seen twice. Process p of P takes rows [p B/P, (p
+ 1) B/P) of each batch: the batches of all processes, one under the other, are the batch of one process.
"""

import functools
import sys
import threading
from collections.abc import Iterator

import grain
import numpy as np

from jaxseq.data.corpora import Corpus, Documents
from jaxseq.errors import UserError

STATE_VERSION = 1
THREADS = 4


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
        """(order [N], starts [N + 1]): the documents of an epoch's stream, and where in it their boundaries stand."""
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
        stream = np.full(length + 1, self._documents.boundary, np.int32)
        pos = np.full(length, -1, np.int32)
        pos[:count] = np.arange(count)
        at, end = int(np.searchsorted(starts, first, "right")) - 1, first + count + 1
        while at < len(order) and starts[at] < end:
            start, stop = int(starts[at]), min(int(starts[at + 1]), end)
            inside = max(first, start + 1)  # the boundary itself is there already
            if inside < stop:
                tokens = self._documents.piece(order[at], inside - start - 1, stop - start - 1)
                stream[inside - first : stop - first] = tokens
            if first < start < first + count:
                pos[start - first : count] = np.arange(count - (start - first))
            at += 1
        weights = np.zeros(length, np.float32)
        weights[:count] = 1
        return {"tokens": stream[:-1], "targets": stream[1:], "pos": pos, "weights": weights}


class _Share(grain.MapDataset):
    """One process's rows of every batch, from row `start` of the endless sequence on."""

    def __init__(self, parent: grain.MapDataset, start: int, batch: int, process_index: int, process_count: int):
        super().__init__(parent)
        self._start, self._batch, self._own = start, batch, batch // process_count
        self._first = process_index * self._own

    def __len__(self) -> int:
        rows = (len(self._parent) - self._start) // self._batch * self._own
        return min(rows, sys.maxsize // 2)  # endless either way; batch() adds to it before it divides

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, self._own)
        return self._parent[self._start + batch * self._batch + self._first + row]


class Batches(Iterator):
    """Endless iterator over batches; see `batches`.

    rows_per_epoch, targets_per_epoch: of all processes. epoch: how many epochs the batches handed out so far make, a
    fraction.
    """

    def __init__(self, config, corpus: Corpus, process_index: int, process_count: int):
        batch, length = config.train.batch, config.train.length
        if length < 1 or batch < 1:
            raise UserError(f"train.batch={batch} and train.length={length} must both be at least 1; set them")
        if config.data.seed < 0:
            raise UserError(f"data.seed={config.data.seed} is negative; set 0 or more")
        if batch % process_count:
            raise UserError(f"train.batch={batch} is no multiple of the {process_count} processes; set it to one")
        self._batch, self._share = batch, (batch, process_index, process_count)
        self._prefetch = max(0, config.data.prefetch)
        rows = PackedRows(corpus.split("train"), length, config.data.seed)
        self.rows_per_epoch, self.targets_per_epoch = len(rows), rows.targets
        row_seed = int(np.random.SeedSequence([config.data.seed, 1]).generate_state(1)[0])
        self._rows = rows.shuffle(seed=row_seed).repeat()
        self._identity = {
            "version": STATE_VERSION,
            "corpus": corpus.fingerprint,
            "length": length,
            "seed": config.data.seed,
        }
        self._begin(0)

    def _begin(self, row: int) -> None:
        batch, index, count = self._share
        self._start = row
        dataset = _Share(self._rows, row, batch, index, count).batch(batch // count)
        threads = min(THREADS, self._prefetch)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=self._prefetch)
        self._iterator = iter(dataset.to_iter_dataset(options))

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._iterator)

    @property
    def row(self) -> int:
        """Rows handed out so far to all processes together, since the run began."""
        return self._start + self._iterator.get_state()["next_index"] * self._batch

    @property
    def epoch(self) -> float:
        return self.row / self.rows_per_epoch

    def state(self) -> dict[str, int | str]:
        """JSON-able: where the sequence stands after the last batch handed out, whatever was prefetched behind it.

        It is the same on every process, and holds no count of batches or processes: a run may go on with another
        batch size or another number of processes, and still sees the very next row.
        """
        return {**self._identity, "row": self.row}

    def restore(self, state: dict[str, int | str]) -> None:
        """Go on with the batch that follows the one `state` was taken at.

        Raises:
            UserError: the state was taken with another corpus, row length or seed, whose rows are not these.
        """
        changed = [name for name, value in self._identity.items() if state.get(name) != value]
        if changed:
            raise UserError(
                f"the data has changed since the checkpoint ({', '.join(changed)}); "
                "resume with the same data and train.length, or begin a new run with train.init"
            )
        self._begin(int(state["row"]))
