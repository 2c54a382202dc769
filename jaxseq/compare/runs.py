"""The runs of an architecture in a results.json: one for each seed.

An architecture's entry holds the run of the comparison's first seed, and everything that is measured on that model; its
`repeats` hold what other seeds gave: [{"seed", "curve", "evaluations", "validation", "train_seconds", …}]. An entry
without repeats, as comparisons of one seed have always written it, is that one run.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxseq.compare.words import finite

RUN = ("curve", "compile_seconds", "train_seconds", "tokens_per_second", "flops_per_token", "evaluations", "validation")


def runs(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every run with "seed" and what it has of RUN, the first seed's first, if it has any."""
    first = {key: entry[key] for key in RUN if entry.get(key) is not None}
    found = [{"seed": entry.get("seed", 0), **first}] if first else []
    return [*found, *(repeat for repeat in entry.get("repeats") or () if len(repeat) > 1)]


def count_seeds(trained: Iterable[Sequence[Mapping[str, Any]]]) -> tuple[int, int]:
    """The fewest and the most runs with a validation that any architecture has, of those that have one."""
    counts = [found for mine in trained if (found := sum("validation" in run for run in mine))]
    return min(counts, default=0), max(counts, default=0)


def mean(values: Iterable[Any]) -> float | None:
    """Of those that are finite numbers; None without any."""
    found = [number for value in values if (number := finite(value)) is not None]
    return statistics.fmean(found) if found else None


def run_of(entry: dict[str, Any], seed: int) -> dict[str, Any]:
    """Where the run of this seed is written down: the entry itself, or one of its repeats, which is made if need be."""
    if seed == entry["seed"]:
        return entry
    repeats = entry.setdefault("repeats", [])
    found = next((repeat for repeat in repeats if repeat["seed"] == seed), None)
    if found is None:
        repeats.append(found := {"seed": seed})
    return found


def evaluated(run: Mapping[str, Any]) -> list[int]:
    """The steps that a run was evaluated at."""
    return [point["step"] for point in run.get("evaluations", ())]


def seconds_at(curve: Sequence[Mapping[str, float]], tokens: int) -> float:
    """Seconds of training after which so many tokens had been seen, on a straight line between records."""
    before = {"tokens": 0, "seconds": 0.0}
    for point in curve:
        if point["tokens"] >= tokens:
            share = (tokens - before["tokens"]) / (point["tokens"] - before["tokens"])
            return before["seconds"] + share * (point["seconds"] - before["seconds"])
        before = point
    return before["seconds"]
