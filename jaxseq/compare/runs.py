"""The runs of an architecture in results.json, one for each seed.

An architecture's entry holds the run of the first seed and everything measured on that model. Its `repeats` hold the
other seeds: [{"seed", "curve", "evaluations", "validation", "train_seconds", …}]. A comparison with one seed has no `repeats`.
A model of `jaxseq improve` that was made from another one has `making_seconds` and `making_tokens` in place of a curve.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxseq.compare.words import finite

RUN = (
    "curve", "compile_seconds", "train_seconds", "tokens_per_second", "flops_per_token", "evaluations", "validation",
    "making_seconds", "making_tokens", "second",
)  # fmt: skip


def runs(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every run, the first seed's first, with "seed" and those fields of RUN that it has."""
    first = {key: entry[key] for key in RUN if entry.get(key) is not None}
    found = [{"seed": entry.get("seed", 0), **first}] if first else []
    return [*found, *(repeat for repeat in entry.get("repeats") or () if len(repeat) > 1)]


def count_seeds(trained: Iterable[Sequence[Mapping[str, Any]]]) -> tuple[int, int]:
    """The fewest and the most validated runs of any architecture; architectures without one are not counted."""
    counts = [found for mine in trained if (found := sum("validation" in run for run in mine))]
    return min(counts, default=0), max(counts, default=0)


def mean(values: Iterable[Any]) -> float | None:
    """The mean of the finite numbers; None if there are none."""
    found = [number for value in values if (number := finite(value)) is not None]
    return statistics.fmean(found) if found else None


def run_of(entry: dict[str, Any], seed: int) -> dict[str, Any]:
    """The record of this seed's run: the entry itself or one of its repeats, which is added if it is missing."""
    if seed == entry["seed"]:
        return entry
    repeats = entry.setdefault("repeats", [])
    found = next((repeat for repeat in repeats if repeat["seed"] == seed), None)
    if found is None:
        repeats.append(found := {"seed": seed})
    return found


def evaluated(run: Mapping[str, Any]) -> list[int]:
    """The steps at which a run was evaluated."""
    return [point["step"] for point in run.get("evaluations", ())]


def seconds_at(curve: Sequence[Mapping[str, float]], tokens: int) -> float:
    """Seconds of training after which this number of tokens was seen, interpolated linearly between records."""
    before = {"tokens": 0, "seconds": 0.0}
    for point in curve:
        if point["tokens"] >= tokens:
            share = (tokens - before["tokens"]) / (point["tokens"] - before["tokens"])
            return before["seconds"] + share * (point["seconds"] - before["seconds"])
        before = point
    return before["seconds"]
