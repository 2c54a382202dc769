"""The paired bootstrap over documents: which differences in bits per byte the choice of documents cannot explain.

Documents are drawn with replacement, as many as there are, the same draw for every model; a model's bits per byte
under a draw is the sum of its nats over ln 2 times the sum of the bytes. The interval is the 2.5th to the 97.5th
percentile of the difference over the draws.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3 (percentile interval); paired
by document as in Koehn, "Statistical significance tests for machine translation evaluation" (EMNLP 2004).
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxseq.compare.words import finite

RESAMPLES = 10_000
SEED = 0
LEVEL = (2.5, 97.5)
BLOCK = 1 << 22  # draws held at once

Key = tuple[str, int, int]  # a document: (id, bytes, how many of the same were before it)
Scores = Mapping[Key, float]  # nats of each document


class Difference(NamedTuple):
    """a's bits per byte minus b's, over the documents that both were scored on."""

    value: float
    low: float | None  # None: fewer than two documents, there is no interval
    high: float | None
    documents: int


def scores(documents: Iterable[Mapping[str, Any]] | None) -> dict[Key, float]:
    """[{"id", "bytes", "nats"}] by document; empty if a number is missing or not finite."""
    seen: Counter = Counter()
    found = {}
    for document in documents or ():
        n_bytes, nats = finite(document.get("bytes")), finite(document.get("nats"))
        if n_bytes is None or nats is None:
            return {}
        key = (str(document.get("id")), int(n_bytes))
        found[*key, seen[key]] = nats
        seen[key] += 1
    return found


def draws(bytes_N: np.ndarray, nats_NM: np.ndarray) -> np.ndarray:
    """Bits per byte of M models under each draw of the N documents: [RESAMPLES, M] float64, the same for the same input.

    A draw that holds only documents of no bytes gives NaN.
    """
    documents = len(bytes_N)
    totals_NM = np.column_stack([bytes_N, nats_NM]).astype(np.float64)
    rng = np.random.default_rng(SEED)
    rows = max(1, BLOCK // documents)
    sums = []
    for start in range(0, RESAMPLES, rows):
        block = min(rows, RESAMPLES - start)
        drawn = rng.integers(documents, size=(block, documents)) + np.arange(block)[:, None] * documents
        times_RN = np.bincount(drawn.ravel(), minlength=block * documents).reshape(block, documents)
        sums.append(times_RN.astype(np.float64) @ totals_NM)
    sums_RM = np.concatenate(sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios_RM = sums_RM[:, 1:] / (math.log(2) * sums_RM[:, :1])
    return np.where(sums_RM[:, :1] > 0, ratios_RM, np.nan)


class Paired:
    """Models scored on documents, each pair compared on the documents that both were scored on."""

    def __init__(self, models: Mapping[str, Scores]):
        self.models = {name: dict(found) for name, found in models.items() if found}
        self._drawn: dict[frozenset[Key], tuple[list[str], np.ndarray]] = {}

    def difference(self, a: str, b: str) -> Difference | None:
        """a minus b; None if they share no document with bytes in it."""
        if a not in self.models or b not in self.models:
            return None
        shared = self.models[a].keys() & self.models[b].keys()
        n_bytes = sum(key[1] for key in shared)
        if not n_bytes:
            return None
        gaps = [self.models[a][key] - self.models[b][key] for key in shared]
        value = math.fsum(gaps) / math.log(2) / n_bytes
        if len(shared) < 2:
            return Difference(value, None, None, len(shared))
        low, high = self._percentiles(frozenset(shared), a, b)
        return Difference(value, low, high, len(shared))

    def interval(self, name: str) -> tuple[float, float] | None:
        """Of the model's own bits per byte; None with fewer than two documents."""
        found = self.models.get(name, {})
        if len(found) < 2 or not sum(key[1] for key in found):
            return None
        return self._percentiles(frozenset(found), name)

    def _percentiles(self, shared: frozenset[Key], a: str, b: str | None = None) -> tuple[float, float]:
        if shared not in self._drawn:
            order = sorted(shared)
            members = [name for name, found in self.models.items() if shared <= found.keys()]
            nats_NM = np.array([[self.models[name][key] for name in members] for key in order])
            self._drawn[shared] = members, draws(np.array([key[1] for key in order]), nats_NM)
        members, ratios_RM = self._drawn[shared]
        values_R = ratios_RM[:, members.index(a)]
        if b is not None:
            values_R = values_R - ratios_RM[:, members.index(b)]
        low, high = np.nanpercentile(values_R, LEVEL)
        return float(low), float(high)
