"""Verdicts of `jaxseq improve`: which pairs are compared, and what one seed can tell."""

from helpers.fake_table import entry

from jaxseq.improve import summary
from jaxseq.improve.verdicts import verdicts


def told(results: dict) -> dict:
    return {(pair["a"], pair["b"]): pair["told"] for pair in verdicts({"architectures": results})["pairs"]}


def test_one_seed_tells_apart_what_is_made_from_the_same_weights():
    rows = {
        "t": entry(0.0),
        "t+int8": entry(0.02, "t", making_tokens=0),
        "t+migrated": entry(0.022, "t", making_tokens=1000),
        "t+window": entry(0.021, "t"),
        "t+student": entry(0.2, "t"),
        "t+distilled": entry(0.1, "t", scratch="t+student"),
        "retnet": entry(0.3),
    }
    found = told(rows)
    assert not found.pop(("t+migrated", "t")) and not found.pop(("t+window", "t"))
    pairs = [("t+int8", "t"), ("t+student", "t"), ("t+distilled", "t"), ("t+distilled", "t+student"), ("retnet", "t")]
    assert found == dict.fromkeys(pairs, True)
    found = verdicts({"architectures": rows})
    assert found["seeds"].startswith("One seed")
    shown = {row["model"]: row for row in summary.rows({"architectures": rows}, found)}
    assert shown["t+distilled"]["against the same from scratch"].startswith("\u22120.")
    assert shown["t+window"]["against its base"].endswith("not told apart")


def test_three_seeds_tell_smaller_differences():
    rows = {"t": entry(0.0, seeds=3), "t+window": entry(0.021, "t", seeds=3)}
    assert told(rows) == {("t+window", "t"): True}
    assert verdicts({"architectures": rows})["seeds"].startswith("3 seeds of each model")
