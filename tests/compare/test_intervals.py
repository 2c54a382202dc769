"""Confidence intervals: simulated coverage, and the formulas against plain loops."""

import itertools
import math

import numpy as np
import pytest

from jaxseq.compare import intervals

DOCUMENTS, SEEDS, SPREADS = (6, 11, 30), (3, 5), (0.0, 0.3, 1.0)
REPLICATIONS = 8000  # a coverage of 95 % has a standard error of 0.24 %, the mean of 18 points of 0.06 %


def simulated(rng, documents, seeds, spread, interaction=0.0, replications=REPLICATIONS):
    """Bytes [R, D] and bits [R, D, S] for a true difference of 0, with random effects of documents and seeds."""
    bytes_RD = rng.lognormal(0, 0.5, (replications, documents))
    by_document = rng.normal(0, 1, (replications, documents, 1))
    by_seed = rng.normal(0, spread, (replications, 1, seeds)) if spread else 0.0
    own = rng.normal(0, interaction, (replications, documents, seeds)) if interaction else 0.0
    return bytes_RD, bytes_RD[:, :, None] * np.broadcast_to(by_document + by_seed + own, (replications, documents, seeds))


def coverage(parts):
    return 100 * np.mean(np.abs(parts.value) <= parts.half_width())


@pytest.mark.parametrize("interaction", [0.0, 0.3])
def test_95_percent_intervals_cover(interaction):
    rng = np.random.default_rng(0)
    found = {}
    for point in itertools.product(DOCUMENTS, SEEDS, SPREADS):
        found[point] = coverage(intervals.two_way(*simulated(rng, *point, interaction)))
    assert all(92 <= value <= 98 for value in found.values()), found
    assert np.mean(list(found.values())) == pytest.approx(95, abs=1.5)


def test_few_documents_or_two_seeds_are_no_excuse():
    rng = np.random.default_rng(1)
    for documents, seeds, spread in itertools.product((2, 3, 11), (2, 3), (0.0, 1.0)):
        assert coverage(intervals.two_way(*simulated(rng, documents, seeds, spread, replications=4000))) > 93


def test_documents_alone_do_not_cover_what_seeds_do():
    """Without the variance of seeds, or with the normal quantile, intervals are too narrow."""
    rng = np.random.default_rng(2)
    parts = intervals.two_way(*simulated(rng, 11, 3, 1.0))
    assert coverage(parts._replace(by_seeds=np.zeros_like(parts.by_seeds))) < 80
    normal = 1.96 * np.sqrt(parts.by_documents + parts.by_seeds)
    assert 100 * np.mean(np.abs(parts.value) <= normal) < 92


def test_the_parts_are_those_of_plain_loops():
    rng = np.random.default_rng(3)
    sizes, bits = rng.integers(100, 5000, 7).astype(float), rng.normal(2000, 500, (7, 4))

    def ratio(documents, seeds):
        return sum(bits[d, s] for d in documents for s in seeds) / len(seeds) / sum(sizes[d] for d in documents)

    every, seeds = list(range(7)), list(range(4))
    whole = ratio(every, seeds)
    without = [ratio([d for d in every if d != left], seeds) for left in every]
    one = [ratio(every, [s for s in seeds if s != left]) for left in seeds]
    parts = intervals.two_way(sizes, bits)
    assert parts.value == pytest.approx(whole)
    assert parts.by_documents == pytest.approx(6 / 7 * sum((x - whole) ** 2 for x in without))
    assert parts.by_seeds == pytest.approx(3 / 4 * sum((x - whole) ** 2 for x in one))
    assert (parts.documents_df + 1, parts.seeds_df) == (pytest.approx(sizes.sum() ** 2 / (sizes**2).sum()), 3)


def test_the_p_value_agrees_with_the_interval():
    rng = np.random.default_rng(4)
    bytes_RD, bits_RDS = simulated(rng, 8, 3, 0.5, replications=2000)
    parts = intervals.two_way(bytes_RD, bits_RDS + bytes_RD[:, :, None])
    assert np.array_equal(parts.p_value() < 0.05, np.abs(parts.value) > parts.half_width())
    assert 0.05 < np.mean(parts.p_value() < 0.05) < 0.95


def test_holm_is_its_definition():
    p = [0.04, None, 0.001, 0.03, 0.2]
    assert intervals.holm(p) == [pytest.approx(0.09), None, pytest.approx(0.004), pytest.approx(0.09), pytest.approx(0.2)]
    assert intervals.holm([]) == [] and intervals.holm([0.9, 0.8]) == [1.0, 1.0]


def scores(values):
    return {(str(i), 1000, 0): value * math.log(2) * 1000 for i, value in enumerate(values)}


def test_documents_without_bytes_and_models_that_agree():
    a = scores([1.0, 2.0, 3.0]) | {("empty", 0, 0): 5.0}
    assert intervals.estimate({0: a}).documents == 3
    same = intervals.estimate({0: a, 1: a}, {0: a, 1: a})
    assert (same.value, same.low, same.high, same.told()) == (0, 0, 0, False)
    assert intervals.estimate({0: a}, {1: a}) is None and intervals.estimate({0: {}}) is None
    assert intervals.estimate({0: {("empty", 0, 0): 5.0}}) is None
