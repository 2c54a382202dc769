"""The Markov baselines: normalised distributions, equal to counts by hand, better with each order."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from helpers.data import data_config, texts_of, write_jsonl

from jaxseq import data
from jaxseq.evaluation import markov


def by_hand(documents, order, vocab, boundary):
    """Interpolated Witten-Bell with dictionaries, straight from the formula."""
    counts = defaultdict(Counter)
    for document in documents:
        stream = [boundary] * order + list(document) + [boundary]
        for at in range(order + 1, len(stream)):
            for k in range(order + 1):
                counts[tuple(stream[at - k : at])][stream[at]] += 1

    def probability(context, token):
        lower = probability(context[1:], token) if context else 1 / vocab
        followers = counts.get(tuple(context))
        if not followers:
            return lower
        return (followers[token] + len(followers) * lower) / (sum(followers.values()) + len(followers))

    return probability


def documents_of(tmp_path, texts, **overrides):
    path = write_jsonl(tmp_path / "corpus.jsonl", texts)
    return data.corpus(data_config(path=path, validation_every=2, **overrides).data)


@pytest.mark.parametrize("dense", [1, 1 << 25])
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_against_the_formula(tmp_path, monkeypatch, order, dense):
    monkeypatch.setattr(markov, "DENSE", dense)
    corpus = documents_of(tmp_path, ["abracadabra", "abrakadabra", "banana", "bandana", "a", "cab"])
    probability = by_hand([document.tolist() for document in corpus.train], order, 257, 256)
    value, documents = markov.bits_per_byte(corpus, order)
    expected = []
    for name, ids, n_bytes in corpus.documents("validation"):
        stream = [256] * order + ids.tolist() + [256]
        places = range(order + 1, len(stream))
        nats = -sum(math.log(probability(stream[at - order : at], stream[at])) for at in places)
        expected.append({"id": name, "bytes": n_bytes, "nats": pytest.approx(nats, rel=1e-12)})
    assert documents == expected
    assert value == pytest.approx(sum(d["nats"] for d in documents) / math.log(2) / sum(d["bytes"] for d in documents))


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_probabilities_sum_to_one(tmp_path, order):
    corpus = documents_of(tmp_path, texts_of([200, 5, 90, 70]))
    model = markov.fit(corpus.train, order, 257)
    contexts, _ = markov.examples(list(corpus.train) + list(corpus.validation), order, 256)
    chosen = contexts[np.random.default_rng(0).permutation(len(contexts))[:50]]
    for context in [*chosen, np.full(order, 5)]:  # the last context was never seen
        p = model.probability(np.broadcast_to(context, (257, order)), np.arange(257))
        assert p.min() > 0 and p.sum() == pytest.approx(1, abs=1e-12)


def test_a_higher_order_predicts_the_embedded_text_better():
    corpus = data.corpus(data_config().data)
    corpus = corpus._replace(train=corpus.train[:40], validation=corpus.validation[:2])
    values = [markov.bits_per_byte(corpus, order)[0] for order in (0, 1, 2, 3)]
    assert values == sorted(values, reverse=True)
    assert 4 < values[0] < 4.5 and 1.8 < values[3] < 2.2


def test_counting_stops_at_the_limit(tmp_path, monkeypatch):
    corpus = documents_of(tmp_path, ["aaaa", "ab", "bbbbbbbb", "ab"])
    before = markov.bits_per_byte(corpus, 1)[0]
    monkeypatch.setattr(markov, "TRAIN_TOKENS", 6)
    alone = corpus._replace(train=corpus.train[:1])
    assert markov.bits_per_byte(corpus, 1) == markov.bits_per_byte(alone, 1)
    assert markov.bits_per_byte(corpus, 1)[0] != before
    monkeypatch.setattr(markov, "TRAIN_TOKENS", 1)
    assert markov.bits_per_byte(corpus, 1) == markov.bits_per_byte(alone, 1)


def test_any_vocabulary(tmp_path, monkeypatch):
    """With a large vocabulary only the lowest orders fit into a table."""
    monkeypatch.setattr(markov, "DENSE", 200_000)
    corpus = documents_of(tmp_path, texts_of([60, 61, 62, 63]))
    wide = corpus._replace(tokenizer=type("Wide", (), {"vocab": 100_000, "boundary": 256}))
    low, high = (markov.bits_per_byte(c, 3)[0] for c in (corpus, wide))
    assert low < high < low * 2
