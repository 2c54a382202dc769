"""The verdicts of a comparison: when an architecture is "ahead", and when two are "not told apart"."""

import copy
import io
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from helpers import fake_results
from rich.console import Console

from jaxseq.compare import costs, machine, report, summary, words
from jaxseq.compare.judgement import NOT_TOLD_APART
from jaxseq.compare.verdicts import verdicts

NATS = math.log(2)


def scored(values, n_bytes=1000):
    """Documents with the given bits per byte."""
    return [{"id": str(i), "bytes": n_bytes, "nats": v * NATS * n_bytes} for i, v in enumerate(values)]


def trained(values, seconds=10.0, evaluations=(), n_bytes=1000):
    found = scored(values, n_bytes)
    bits = sum(d["nats"] for d in found) / NATS / sum(d["bytes"] for d in found)
    curve = [{"step": 10, "tokens": 1000, "seconds": seconds, "loss": 1.0}]
    validation = {"bits_per_byte": bits, "documents": found}
    return {
        "status": "done",
        "curve": curve,
        "evaluations": list(evaluations),
        "validation": validation,
        "train_seconds": seconds,
    }


def compared(markov=3.0, **architectures):
    documents = max((len(a["validation"]["documents"]) for a in architectures.values() if "validation" in a), default=1)
    baseline = {"order": 2, "bits_per_byte": markov, "documents": scored([markov or 0.0] * documents)}
    return verdicts({"architectures": architectures, "markov": [baseline] if markov else []})


def pair(found, a, b, basis="tokens"):
    return next(p for p in found["pairs"] if (p["a"], p["b"], p["basis"]) == (a, b, basis))


def test_pairing_takes_out_what_documents_share():
    hard = np.linspace(1, 3, 12)
    found = compared(markov=9, a=trained(hard), b=trained(hard + 0.05 + 0.001 * np.arange(12)))
    assert pair(found, "a", "b")["words"] == "A is ahead of b"
    assert pair(found, "a", "b")["high"] < -0.04


def test_a_clear_difference_is_said_with_its_numbers():
    found = compared(transformer=trained(np.linspace(2.5, 2.7, 12)), mamba=trained(np.linspace(2.4, 2.56, 12)))
    assert found["equal_tokens"] == [
        "At equal tokens (1,000), mamba is ahead of the transformer by 0.12 bits per byte (95 % interval 0.11 to 0.13, "
        "12 documents, 1 seed)."
    ]
    assert found["ranking"]["tokens"][0]["architecture"] == "mamba"
    assert found["ranking"]["tokens"][0]["ahead_of"] == ["transformer"]


def test_identical_models_are_not_told_apart():
    values = np.linspace(1, 2.5, 12)
    found = compared(a=trained(values), b=trained(values))
    got = pair(found, "a", "b")
    assert got["words"] == NOT_TOLD_APART and abs(got["difference"]) < 1e-12
    assert "0.00 bits per byte (95 % interval 0.00 to 0.00, 12 documents, 1 seed)" in found["equal_tokens"][0]
    assert found["headlines"]["tokens"].startswith("Not told apart")


def test_an_interval_over_zero_is_not_told_apart():
    rng = np.random.default_rng(1)
    found = compared(a=trained(2 + rng.normal(0, 0.1, 12)), b=trained(2 + rng.normal(0, 0.1, 12)))
    got = pair(found, "a", "b")
    assert got["low"] < 0 < got["high"] and got["words"] == NOT_TOLD_APART
    assert NOT_TOLD_APART in found["equal_tokens"][0]


@pytest.mark.parametrize("markov", [2.3, None])
def test_nobody_is_ranked_who_is_not_better_than_markov(markov):
    found = compared(markov=markov, a=trained(np.linspace(2.0, 2.1, 12)), b=trained(np.linspace(2.5, 2.6, 12)))
    got = pair(found, "a", "b")
    assert got["high"] < 0 and got["words"] == NOT_TOLD_APART and "Markov" in got["reason"]
    assert NOT_TOLD_APART in found["equal_tokens"][0] and "Markov" in found["equal_tokens"][0]


def test_better_than_markov_only_by_chance_is_no_better():
    noisy = 2.95 + np.tile([0.3, -0.3], 6)
    found = compared(a=trained(noisy), b=trained(noisy - 0.5))
    assert pair(found, "a", "b")["words"] == NOT_TOLD_APART
    assert any("no better" in s for s in found["markov"])


def test_one_document_gives_no_interval():
    found = compared(a=trained([1.0]), b=trained([2.0]))
    got = pair(found, "a", "b")
    assert (got["low"], got["high"], got["words"]) == (None, None, NOT_TOLD_APART)
    assert "one document" in found["equal_tokens"][0]


def seeded(*runs):
    """An entry with several seeds, from entries with one."""
    return runs[0] | {"seed": 0, "repeats": [run | {"seed": seed} for seed, run in enumerate(runs[1:], 1)]}


def test_one_seed_is_said_first_and_tells_apart_only_more_than_seeds_make():
    values = np.linspace(2, 2.3, 12)
    near, far = (compared(a=trained(values), b=trained(values + gap + 0.001 * np.arange(12))) for gap in (0.03, 0.2))
    assert near["seeds"].startswith("One seed") and "documents only" in near["seeds"]
    assert pair(near, "a", "b")["high"] < 0 and pair(near, "a", "b")["words"] == NOT_TOLD_APART
    assert "one seed" in near["equal_tokens"][0]
    assert pair(far, "a", "b")["words"] == "A is ahead of b"


def test_three_seeds_that_agree_tell_small_differences_apart_and_three_that_do_not_tell_none():
    values = np.linspace(2, 2.3, 12)
    for spread, said in ((0.001, "A is ahead of b"), (0.03, NOT_TOLD_APART)):
        a, b = (
            seeded(*(trained(values + gap + spread * k + 0.001 * np.cos(np.arange(12))) for k in order))
            for gap, order in ((0, (0, 1, -1)), (0.03, (-1, 0, 1)))
        )
        found = compared(a=a, b=b)
        got = pair(found, "a", "b")
        assert (got["seeds"], got["words"]) == (3, said)
        assert found["seeds"].startswith("3 seeds of each")
        assert "12 documents, 3 seeds" in found["equal_tokens"][0]
        assert found["ranking"]["tokens"][0]["bits_per_byte"] == pytest.approx(float(np.mean(values + 0.001 * np.cos(range(12)))))


def test_only_shared_seeds_are_compared_and_fewer_are_said():
    values = np.linspace(2, 2.3, 12)
    found = compared(a=seeded(trained(values), trained(values + 1), trained(values - 1)), b=trained(values + 0.5))
    got = pair(found, "a", "b")
    assert got["seeds"] == 1 and got["difference"] == pytest.approx(-0.5)
    assert found["seeds"].startswith("1 to 3 seeds")


def test_many_comparisons_ask_for_more():
    """The best of twenty equal models is not ahead of the worst, although one of their intervals excludes 0."""
    rng = np.random.default_rng(0)
    values = np.linspace(2, 2.3, 12)
    names = [f"m{i}" for i in range(20)]
    found = compared(
        **{n: seeded(*(trained(values + rng.normal(0, 0.01) + rng.normal(0, 0.02, 12)) for _ in range(3))) for n in names}
    )
    pairs = [p for p in found["pairs"] if p["basis"] == "tokens"]
    alone = [p for p in pairs if p["low"] > 0 or p["high"] < 0]
    assert alone and all(p["p"] < 0.05 for p in alone)
    assert all(p["words"] == NOT_TOLD_APART for p in pairs)
    assert any("one of 190 comparisons" in p["reason"] for p in pairs)


def test_equal_time_is_the_mean_of_the_seeds_times():
    """Seeds differ only by the machine's speed: each is compared at the same fraction of its steps."""
    ones = np.ones(12)
    fast = seeded(trained(2 * ones, seconds=10), trained(2 * ones, seconds=30))
    slow = seeded(
        *(trained(ones, seconds=s, evaluations=[evaluation(s / 4, 2.8 * ones), evaluation(s / 2, 2 * ones)]) for s in (30, 50))
    )
    found = compared(fast=fast, slow=slow)
    assert found["time"] == 20
    standings = {row["architecture"]: row["bits_per_byte"] for row in found["ranking"]["time"]}
    assert standings == {"fast": pytest.approx(2.0), "slow": pytest.approx(2.0)}


def evaluation(seconds, values, documents=True, tokens=None):
    out = {"seconds": seconds, "tokens": tokens, "bits_per_byte": float(np.mean(values))}
    return out | ({"documents": scored(values)} if documents else {})


def test_equal_time_is_when_the_first_was_done_and_interpolates():
    ones = np.ones(12)
    slow = trained(1.0 * ones, seconds=40, evaluations=[evaluation(10, 2.8 * ones), evaluation(30, 2.0 * ones)])
    fast = trained(2.0 * ones + 0.01 * np.arange(12), seconds=20, evaluations=[evaluation(10, 2.5 * ones)])
    found = compared(fast=fast, slow=slow)
    assert found["time"] == 20
    standings = {row["architecture"]: row["bits_per_byte"] for row in found["ranking"]["time"]}
    assert standings["slow"] == pytest.approx(2.4)
    got = pair(found, "fast", "slow", "time")
    assert got["difference"] == pytest.approx(standings["fast"] - standings["slow"])
    assert got["low"] <= got["difference"] <= got["high"] and got["words"] == "Fast is ahead of slow"
    assert pair(found, "fast", "slow")["words"] == "Slow is ahead of fast"
    assert "At equal time (20 s of training, when fast finished)" in found["equal_time"][0]


def test_equal_time_without_documents_ranks_nothing():
    ones = np.ones(12)
    points = [evaluation(10, 2.8 * ones, documents=False), evaluation(30, 2.0 * ones, documents=False)]
    found = compared(fast=trained(2.0 * ones, seconds=20), slow=trained(ones, seconds=40, evaluations=points))
    got = pair(found, "fast", "slow", "time")
    assert got["difference"] == pytest.approx(-0.4) and got["low"] is None and got["words"] == NOT_TOLD_APART


def test_equal_time_falls_back_on_the_earlier_documents():
    ones = np.ones(12)
    points = [evaluation(10, 2.8 * ones), evaluation(30, 2.0 * ones, documents=False)]
    found = compared(fast=trained(2.0 * ones, seconds=20), slow=trained(ones, seconds=40, evaluations=points))
    assert pair(found, "fast", "slow", "time")["difference"] == pytest.approx(-0.8)


def test_who_has_no_evaluation_by_then_is_said():
    ones = np.ones(12)
    found = compared(fast=trained(2.0 * ones, seconds=20), slow=trained(ones, seconds=40))
    assert found["equal_time"][-1] == "Slow has no evaluation at that time."


def test_who_stopped_early_is_not_compared_at_equal_tokens():
    short = trained(np.ones(12))
    short["curve"][0]["tokens"] = 400
    found = compared(a=trained(2 * np.ones(12)), b=trained(2.2 * np.ones(12)), c=short)
    assert all("c" not in (p["a"], p["b"]) for p in found["pairs"] if p["basis"] == "tokens")
    assert "C stopped at 400 of 1,000 tokens and is left out." in found["equal_tokens"]


def test_only_shared_documents_are_compared():
    b = trained(2 * np.ones(12))
    b["validation"]["documents"] = b["validation"]["documents"][:7]
    found = compared(a=trained(np.linspace(1, 2, 12)), b=b)
    got = pair(found, "a", "b")
    assert got["documents"] == 7
    assert got["difference"] == pytest.approx(np.linspace(1, 2, 12)[:7].mean() - 2)


def test_numbers_that_are_not_finite_rank_nothing():
    bad = trained(np.ones(12))
    bad["validation"]["documents"][3]["nats"] = math.nan
    worse = trained(np.ones(12))
    worse["validation"]["bits_per_byte"] = math.nan
    found = compared(a=trained(2 * np.ones(12)), bad=bad, worse=worse)
    assert pair(found, "a", "bad")["words"] == NOT_TOLD_APART
    assert [row["architecture"] for row in found["ranking"]["tokens"]] == ["bad", "a"]


@pytest.mark.parametrize(("count", "trouble"), [(0, False), (1, False), (2, False), (3, True), (12, True), (25, False)])
def test_any_number_of_architectures(count, trouble):
    found = verdicts(fake_results.results(fake_results.NAMES[:count], trouble=trouble))
    json.dumps(found, allow_nan=False)
    whole = count - 2 * trouble
    assert len(found["ranking"]["tokens"]) == whole
    assert len([p for p in found["pairs"] if p["basis"] == "tokens"]) == whole * (whole - 1) // 2
    assert len(found["missing"]) == 2 * trouble
    for key in ("equal_tokens", "equal_time", "speed", "memory", "decoding", "markov", "missing"):
        assert all(s[0].isupper() and s.endswith(".") and "nan" not in s and "None" not in s for s in found[key]), found[key]


def test_every_part_may_be_missing():
    whole = fake_results.results()
    for part in list(whole["architectures"]["mamba"]):
        for value in (None, ...):
            results = copy.deepcopy(whole)
            results["architectures"]["mamba"].pop(part)
            if value is None:
                results["architectures"]["mamba"][part] = None
            json.dumps(verdicts(results), allow_nan=False)
    for part in [p for p in whole if p != "architectures"]:
        verdicts({key: value for key, value in whole.items() if key != part})


def curve(part, x, y, values):
    return {part: [{x: at, y: value} for at, value in values.items()]}


def test_crossovers():
    grows, flat = {128: 1.0, 256: 2.0, 512: 4.0, 1024: 8.0}, dict.fromkeys((128, 256, 512, 1024), 3.0)
    assert costs.crossover(flat, grows) == 512
    assert costs.exact_crossover(flat, grows) == 385, "1 + 2 (t - 256) / 256 passes 3 after t = 384"
    assert costs.crossover(grows, flat) is None
    assert costs.crossover({128: 1.0}, {128: 2.0}) == 128
    assert costs.crossover({128: 1.0}, {128: 1.04}, costs.NOISE) is None
    assert costs.exact_crossover({10: 5.0, 20: 5.0}, {10: 5.0, 20: 9.0}) == 11


def test_decoding_and_state_sentences():
    contexts = (128, 1024, 32768)
    times = dict(zip(contexts, (1e-3, 1.2e-3, 9.3e-3), strict=True))
    transformer = curve("decode", "context", "seconds_per_token", times)
    retnet = curve("decode", "context", "seconds_per_token", dict.fromkeys(contexts, 1e-3))
    transformer |= curve("state_bytes", "context", "bytes", {c: 512 * c for c in (16, *contexts)})
    retnet |= curve("state_bytes", "context", "bytes", dict.fromkeys((16, *contexts), 32 * 1024))
    architectures = {"transformer": transformer | {"title": "Transformer: x"}, "retnet": retnet | {"title": "RetNet: y"}}
    assert verdicts({"architectures": architectures})["decoding"] == [
        "Decoding one token at context 32,768 takes the Transformer 9.3 times as long as RetNet (9.3 ms against 1 ms); its "
        "state is 512 times as large (16 MiB against 32 KiB); RetNet is the faster from context 1,024 on.",
        "RetNet's state is smaller than the Transformer's from context 65 on.",
    ]


def test_how_numbers_are_said():
    assert words.duration(0.00123) == "1.23 ms" and words.duration(200) == "3 min 20 s" and words.duration(7260) == "2 h 1 min"
    assert words.size(512) == "512 B" and words.size(1536) == "1.5 KiB" and words.size(64 * 2**20) == "64 MiB"
    assert words.size(1023 * 1024) == "1,023 KiB"
    assert words.times(1.25) == "1.25" and words.times(9.31) == "9.3" and words.times(512.2) == "512"
    assert words.significant(12_345) == "12,300" and words.significant(0.01234) == "0.0123"
    assert words.bits(-0.0001) == "\u22120.0001" and words.bits(0.0) == "0.00" and words.bits(-0.12) == "\u22120.12"
    assert words.short_count(8000) == "8k" and words.short_length(32768) == "32k" and words.short_length(300) == "300"
    assert words.listing(["A", "B", "C"]) == "A, B and C" and words.listing(["A"]) == "A"
    assert words.labels({"a": {"title": "X: 1"}, "b": {"title": "X: 2"}}) == {"a": "a", "b": "b"}


def test_a_busy_machine_is_said_before_its_times_are_read():
    results = fake_results.results(fake_results.NAMES[:2])
    assert verdicts(results)["busy"] == "" and "busy" not in summary.markdown(results)
    quiet = results | {"other_programs": {"mamba: training": 0.02, "decoding at context 128": 0.09}}
    assert verdicts(quiet)["busy"] == ""
    busy = results | {"other_programs": {"mamba: training": 0.02, "decoding at context 128": 0.41}}
    assert "41 % of its processors (decoding at context 128)" in verdicts(busy)["busy"]
    console = Console(file=io.StringIO(), width=100)
    summary.show(busy, console)
    for text in (summary.markdown(busy), console.file.getvalue(), report.render(busy)):
        assert "The machine was busy" in text


def test_what_other_programs_take_is_measured_without_our_own_work():
    spinning = "import time\nwhile time.process_time() < 0.5: pass"
    others = machine.OtherPrograms()
    others._seconds = lambda: (101.0, 60.0, 20.0)
    others.before = (91.0, 50.0, 15.0)
    assert others.share() == pytest.approx(5.0 / (10.0 * machine.psutil.cpu_count()))
    wall, busy, own = machine.OtherPrograms().before
    subprocess.run([sys.executable, "-c", spinning], check=True)
    after = machine.OtherPrograms().before
    assert after[0] > wall and after[1] - busy > 0.4, "a program that works half a second is seen"
    assert after[2] - own > 0.4, "and counted as our own, for we started it"
