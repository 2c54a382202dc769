"""Batches of rows: reshuffled in each epoch, split over processes, resumed exactly.

Batches ignore the end of an epoch: a batch may hold the last rows of one epoch and the first of the next, so that no row is
dropped or seen twice. Process p of P takes rows [p B/P, (p + 1) B/P) of each batch: concatenated, the batches of all
processes are the batch of a single process.
"""

import sys
from collections.abc import Callable, Iterator

import grain
import numpy as np

from jaxseq.errors import UserError

STATE_VERSION = 1
THREADS = 4

Row = dict[str, np.ndarray]
Transform = Callable[[Row, np.random.Generator], Row]


def random_of(seed: int, number: int) -> np.random.Generator:
    """The generator of row `number` of the endless sequence."""
    return np.random.default_rng([seed, 2, number])


class _Share(grain.MapDataset):
    """One process's rows of every batch, from row `start` of the endless sequence on; see `batches` for `transform`."""

    def __init__(
        self, parent: grain.MapDataset, start: int, batch: int, process_index: int, process_count: int,
        transform: Transform | None = None, seed: int = 0,
    ):  # fmt: skip
        super().__init__(parent)
        self._transform, self._seed = transform, seed
        self._start, self._batch, self._own = start, batch, batch // process_count
        self._first = process_index * self._own

    def __len__(self) -> int:
        rows = (len(self._parent) - self._start) // self._batch * self._own
        return min(rows, sys.maxsize // 2)  # endless either way; batch() adds to it before it divides

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, self._own)
        number = self._start + batch * self._batch + self._first + row
        found = self._parent[number]
        return self._transform(found, random_of(self._seed, number)) if self._transform else found


class RowBatches(Iterator):
    """Endless iterator over batches of rows, reshuffled in each epoch.

    rows: the rows of an epoch, each a dict of arrays. identity: JSON data that identifies the rows; `restore` refuses a state
    with another identity. rows_per_epoch: of all processes. epoch: the number of epochs handed out so far, a fraction.
    """

    def __init__(
        self, rows: grain.MapDataset, identity: dict, config, process_index: int, process_count: int,
        transform: Transform | None = None,
    ):  # fmt: skip
        batch = config.train.batch
        if batch < 1:
            raise UserError(f"train.batch={batch} must be at least 1; set it")
        if config.data.seed < 0:
            raise UserError(f"data.seed={config.data.seed} is negative; set 0 or more")
        if batch % process_count:
            raise UserError(f"train.batch={batch} is not a multiple of the number of processes, {process_count}; set it to one")
        self._batch, self._share = batch, (batch, process_index, process_count)
        self._prefetch, self._transform, self._seed = max(0, config.data.prefetch), transform, config.data.seed
        self.rows_per_epoch = len(rows)
        row_seed = int(np.random.SeedSequence([config.data.seed, 1]).generate_state(1)[0])
        self._rows = rows.shuffle(seed=row_seed).repeat()
        self._identity = {"version": STATE_VERSION, **identity, "seed": config.data.seed}
        self._begin(0)

    def _begin(self, row: int) -> None:
        batch, index, count = self._share
        self._start = row
        dataset = _Share(self._rows, row, batch, index, count, self._transform, self._seed).batch(batch // count)
        threads = min(THREADS, self._prefetch)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=self._prefetch)
        self._iterator = iter(dataset.to_iter_dataset(options))

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._iterator)

    @property
    def row(self) -> int:
        """Number of rows handed out to all processes since the run began."""
        return self._start + self._iterator.get_state()["next_index"] * self._batch

    @property
    def epoch(self) -> float:
        return self.row / self.rows_per_epoch

    def state(self) -> dict[str, int | str]:
        """The position in the sequence after the last batch handed out, as JSON data; prefetched batches do not count.

        It is the same on every process and does not depend on the batch size or the number of processes: a run may resume
        with another batch size or number of processes and continues with the next row.
        """
        return {**self._identity, "row": self.row}

    def restore(self, state: dict[str, int | str]) -> None:
        """Continue with the batch after the one at which `state` was taken.

        Raises:
            UserError: the state was taken with another corpus, row length or seed.
        """
        changed = [name for name, value in self._identity.items() if state.get(name) != value]
        if changed:
            raise UserError(
                f"the data has changed since the checkpoint ({', '.join(changed)}); "
                "resume with the same data and train.length, or begin a new run with train.init"
            )
        self._begin(int(state["row"]))
