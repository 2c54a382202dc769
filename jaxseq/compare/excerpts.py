"""The text that all models of a comparison are evaluated on: validation documents, cut to a total number of tokens."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxseq.data import Corpus, Documents
from jaxseq.evaluation.markov import Markov, examples


class Excerpts:
    """A corpus whose validation documents are cut to a total of about `tokens` tokens, the longest documents first.

    As many documents are taken as `tokens` allows at `length` tokens each, evenly spaced over the split. A document is cut at
    a multiple of `length` tokens, and the cut counts as the end of the text, for Markov models too.

    count, cut, tokens: number of documents, largest number of tokens of one document, tokens in all.
    """

    def __init__(self, corpus: Corpus, tokens: int, length: int):
        self.corpus, self.tokenizer = corpus, corpus.tokenizer
        lengths = np.asarray(corpus.split("validation").lengths)
        self.count = min(len(lengths), max(1, tokens // length))
        self.chosen = np.linspace(0, len(lengths) - 1, self.count).round().astype(int)
        self.cut = _level(lengths[self.chosen], tokens)
        if self.cut < lengths[self.chosen].max():
            self.cut = max(length, self.cut // length * length)
        self.tokens = int(np.minimum(lengths[self.chosen], self.cut).sum())

    def split(self, name: str) -> Documents:
        return self.corpus.split(name)

    def documents(self, split: str) -> Iterator[tuple[str, np.ndarray, int]]:
        """As `Corpus.documents`."""
        if split != "validation":
            yield from self.corpus.documents(split)
            return
        documents = self.corpus.split("validation")
        names = documents.store.ids()
        for i in self.chosen.tolist():
            ids, n_bytes = documents[i], int(documents.n_bytes[i])
            if len(ids) > self.cut:
                ids = ids[: self.cut]
                n_bytes = round(self.tokenizer.bytes_per_token(ids[1:]) * (len(ids) - 1))
            yield names[documents.positions[i]], ids, n_bytes


def _level(lengths: np.ndarray, tokens: int) -> int:
    """The largest c with sum(min(length, c)) <= tokens; the longest length if all fit."""
    low, high = 1, int(lengths.max())
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(lengths, middle).sum() <= tokens:
            low = middle
        else:
            high = middle - 1
    return low


def markov(
    batches: Iterator[dict[str, np.ndarray]], steps: int, excerpts: Excerpts, orders: Sequence[int]
) -> list[dict[str, Any]]:
    """[{"order", "bits_per_byte", "documents": [{"id", "bytes", "nats"}]}] of the excerpts, for Markov models counted on the
    rows that the architectures are trained on. Each row, like each document, is preceded by boundary tokens.
    """
    tokenizer = excerpts.tokenizer
    seen = [next(batches) for _ in range(steps)]
    tokens, targets, pos = (np.concatenate([batch[name] for batch in seen]) for name in ("tokens", "targets", "pos"))
    contexts = np.stack(
        [np.where(pos >= k, np.roll(tokens, k, axis=1), tokenizer.boundary) for k in range(max(orders))], axis=-1
    )[pos >= 0].astype(np.int64)
    targets = targets[pos >= 0].astype(np.int64)
    names, ids, n_bytes = zip(*excerpts.documents("validation"), strict=True)
    starts = np.cumsum([0, *(len(document) for document in ids[:-1])])
    found = []
    for order in orders:
        model = Markov(contexts[:, :order], targets, order, tokenizer.vocab)
        nats = -np.log(model.probability(*examples(list(ids), order, tokenizer.boundary)))
        documents = [
            {"id": str(name), "bytes": size, "nats": float(total)}
            for name, size, total in zip(names, n_bytes, np.add.reduceat(nats, starts), strict=True)
        ]
        bits = float(nats.sum() / np.log(2) / max(sum(n_bytes), 1))
        found.append({"order": order, "bits_per_byte": bits, "documents": documents})
    return found
