"""Markov models of the tokens: the baseline that a trained model must beat.

Order k predicts a token from the k tokens before it. Counts are smoothed by interpolated Witten-Bell. Let c(h, w) be the
number of times that w followed the context h in training, c(h) their sum over w, n(h) the number of different tokens that
followed h, and h' the context without its oldest token. Then

    P(w | h) = (c(h, w) + n(h) P(w | h')) / (c(h) + n(h)),        P(w | h) = P(w | h') if h was never seen,

down to P(w) for the empty context, which falls back to 1 / V. For every context this is a distribution over the V tokens.

Source: Witten and Bell, "The zero-frequency problem", IEEE Trans. Information Theory 37 (1991), method C; in the
interpolated form of Chen and Goodman, "An empirical study of smoothing techniques for language modeling" (1998),
section 2.
"""

import math

import numpy as np

from jaxseq.data.corpora import Corpus, Documents

TRAIN_TOKENS = 1 << 27  # counting takes about 100 bytes of memory per token; only whole documents within this limit are counted
DENSE = 1 << 25  # keys below this are looked up in a table, larger ones by binary search


class _Keys:
    """Numbers the distinct keys of an array 0, 1, …; a key that is not in the array gets -1."""

    def __init__(self, keys: np.ndarray, space: int):
        if space <= DENSE:
            seen = np.zeros(space, bool)
            seen[keys] = True
            self._table = np.where(seen, np.cumsum(seen) - 1, -1).astype(np.int32)
            self._sorted = None
            self.count = int(seen.sum())
        else:
            self._sorted = np.unique(keys)
            self.count = len(self._sorted)

    def __call__(self, keys: np.ndarray) -> np.ndarray:
        """keys [N] int64, negative ones unknown -> numbers [N] int64."""
        known = keys >= 0
        if self._sorted is None:
            return np.where(known, self._table[np.where(known, keys, 0)], -1).astype(np.int64)
        at = np.minimum(np.searchsorted(self._sorted, keys), self.count - 1)
        return np.where(self._sorted[at] == keys, at, -1)


class _Level:
    """Counts of one order: pairs (context number, token)."""

    def __init__(self, context: np.ndarray, contexts: int, target: np.ndarray, vocab: int):
        self._vocab = vocab
        keys = context * vocab + target
        self._pairs = _Keys(keys, contexts * vocab)
        pair = self._pairs(keys)
        self.pair_count = np.bincount(pair, minlength=self._pairs.count)
        self.context_count = np.bincount(context, minlength=contexts)
        first = np.zeros(self._pairs.count, np.int64)
        first[pair] = context  # the context that each pair belongs to
        self.followers = np.bincount(first, minlength=contexts)

    def interpolate(self, context: np.ndarray, target: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """[N] probabilities, from those of the order below."""
        pair = self._pairs(np.where(context >= 0, context * self._vocab + target, -1))
        hits = np.where(pair >= 0, self.pair_count[pair], 0)
        at = np.maximum(context, 0)
        total, followers = self.context_count[at], self.followers[at]
        return np.where(context >= 0, (hits + followers * lower) / np.maximum(total + followers, 1), lower)


class Markov:
    """A Markov model over `vocab` tokens, counted on contexts [N, order] (nearest token first) and targets [N]."""

    def __init__(self, contexts: np.ndarray, targets: np.ndarray, order: int, vocab: int):
        self.order, self.vocab = order, vocab
        self._keys: list[_Keys] = []
        number, count = np.zeros(len(targets), np.int64), 1
        self._levels = [_Level(number, count, targets, vocab)]
        for k in range(order):
            pushed = number * vocab + contexts[:, k]
            self._keys.append(_Keys(pushed, count * vocab))
            number, count = self._keys[-1](pushed), self._keys[-1].count
            self._levels.append(_Level(number, count, targets, vocab))

    def probability(self, contexts: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """P(target | context), [N] float64. contexts: [N, order] int64, nearest token first."""
        number = np.zeros(len(targets), np.int64)
        result = self._levels[0].interpolate(number, targets, np.full(len(targets), 1 / self.vocab))
        for k, (keys, level) in enumerate(zip(self._keys, self._levels[1:], strict=True)):
            number = keys(np.where(number >= 0, number * self.vocab + contexts[:, k], -1))
            result = level.interpolate(number, targets, result)
        return result


def examples(ids: list[np.ndarray], order: int, boundary: int) -> tuple[np.ndarray, np.ndarray]:
    """The contexts [N, order] (nearest token first) and targets [N], int64, on which a Markov model is scored.

    Each document's targets are its tokens and the boundary after them; the context before a document is all boundaries.
    """
    lengths = np.array([len(document) for document in ids])
    stream = np.concatenate(ids).astype(np.int64)
    ends = np.cumsum(lengths)
    pos = np.arange(len(stream)) - np.repeat(ends - lengths, lengths)
    contexts = np.full((len(pos), order), boundary, np.int64, order="F")
    for k in range(order):
        inside = np.flatnonzero(pos >= k)
        contexts[inside, k] = stream[inside - k]
    targets = np.append(stream[1:], boundary)
    targets[ends - 1] = boundary
    return contexts, targets


def fit(documents: Documents, order: int, vocab: int) -> Markov:
    """Count the first documents, up to TRAIN_TOKENS tokens in all (at least one document)."""
    count = max(1, int(np.searchsorted(np.cumsum(documents.lengths), TRAIN_TOKENS, "right")))
    contexts, targets = examples([documents[i] for i in range(min(count, len(documents)))], order, documents.boundary)
    return Markov(contexts, targets, order, vocab)


def bits_per_byte(corpus: Corpus, order: int) -> tuple[float, list[dict]]:
    """Bits per byte of the validation documents under a Markov model of the training documents.

    Returns:
        (bits_per_byte, documents): the sum of all targets' bits over the sum of the documents' UTF-8 bytes, and per
        document {"id", "bytes", "nats"}. Targets are those of the neural models: every token of a document and the
        boundary after it.

    Raises:
        UserError: the corpus has no validation documents.
    """
    names, ids, n_bytes = zip(*corpus.documents("validation"), strict=True)
    model = fit(corpus.split("train"), order, corpus.tokenizer.vocab)
    nats = -np.log(model.probability(*examples(list(ids), order, corpus.tokenizer.boundary)))
    starts = np.cumsum([0, *(len(document) for document in ids[:-1])])
    totals = np.add.reduceat(nats, starts)
    documents = [
        {"id": name, "bytes": size, "nats": float(total)} for name, size, total in zip(names, n_bytes, totals, strict=True)
    ]
    return float(totals.sum() / math.log(2) / sum(n_bytes)), documents
