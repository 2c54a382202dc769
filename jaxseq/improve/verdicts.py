"""Judges each row against the model that it is made from, and a distilled student against the same model trained alone.

The difference is of bits per byte on the same held-out documents, with the intervals of `jaxseq.compare.intervals` over
documents and seeds and Holm's correction for all pairs. Models of separate training runs differ by their seeds; so with one
seed, up to SEED_SPREAD, they are not told apart. A model that is made from another one's weights is compared with these very
weights, so that no such bound applies to it.
"""

import statistics
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jaxseq.compare.intervals import LEVEL, SEED_SPREAD, Estimate, Seeds, estimate, holm, scores
from jaxseq.compare.runs import count_seeds, mean, runs
from jaxseq.compare.verdicts import busy_words, missing
from jaxseq.compare.words import plural

KIND = "improve"  # the `kind` of the results
ONE_SEED = (
    "One seed: each model was trained once. Intervals are over documents only and do not cover other seeds; so models that were "
    f"trained apart are told apart only by more than {SEED_SPREAD} bits per byte."
)


class RowPair(NamedTuple):
    a: str
    b: str
    difference: Estimate  # a - b, bits per byte
    same_weights: bool  # a was made from b's weights without training

    def json(self, adjusted: float | None) -> dict[str, Any]:
        told = self.difference.told(adjusted)
        if self.same_weights:  # without the bound for separate runs
            told = adjusted is not None and adjusted < 1 - LEVEL and self.difference.value != 0
        found = self.difference._asdict()
        return {"a": self.a, "b": self.b, "basis": "tokens", "difference": found.pop("value"), **found,
                "p_adjusted": adjusted, "told": told}  # fmt: skip


def verdicts(results: Mapping[str, Any]) -> dict[str, Any]:
    """The verdicts of a results.json of `jaxseq improve` (only its measurements are read).

    Returns (JSON-able), with the names that `jaxseq.compare.verdicts` uses:
      seeds, busy, missing: sentences
      pairs: [{"a", "b", "basis", "difference": bits per byte a - b, "low", "high", "p", "p_adjusted", "documents", "seeds",
        "told": whether it differs significantly}]
      ranking: {"tokens": [{"architecture", "bits_per_byte", "low", "high", "seeds"}], best first, "time": []}
    """
    entries = results.get("architectures") or {}
    trained = {name: runs(entry) for name, entry in entries.items()}
    own = {name: of_runs(mine, "validation") for name, mine in trained.items()}
    found = list(pairs(entries, own))
    adjusted = holm([pair.difference.p for pair in found])
    standings = filter(None, (standing(name, trained[name], own[name]) for name in entries))
    ranking = sorted(standings, key=lambda row: row["bits_per_byte"])
    return {
        "seeds": seeds_sentence(trained),
        "busy": busy_words(results),
        "missing": missing(entries, {name: name for name in entries}),
        "pairs": [pair.json(p) for pair, p in zip(found, adjusted, strict=True)],
        "ranking": {"tokens": ranking, "time": []},
    }


def of_runs(mine: list[dict[str, Any]], text: str) -> Seeds:
    """{seed: score of each document of a text}, of the runs that were scored on it."""
    found = {run["seed"]: scores((run.get(text) or {}).get("documents")) for run in mine}
    return {seed: documents for seed, documents in found.items() if documents}


def pairs(entries: Mapping[str, Any], own: Mapping[str, Seeds]) -> Iterator[RowPair]:
    """Each row with its base and with the same model from scratch; each further base with the first one."""
    bases = [name for name, entry in entries.items() if "row" in entry and not entry["row"]["base"]]
    for name, entry in entries.items():
        row = entry.get("row") or {}
        others = [row.get("base"), row.get("scratch")] if row.get("base") else [base for base in bases[:1] if base != name]
        for other in filter(None, others):
            if other in own and (difference := estimate(own[name], own[other])):
                yield RowPair(name, other, difference, entry.get("making_tokens") == 0 and other == row.get("base"))


def standing(name: str, mine: list[dict[str, Any]], own: Seeds) -> dict[str, Any] | None:
    """A row's own score, the mean over its seeds; None if it has none."""
    values = [value for run in mine if (value := mean([(run.get("validation") or {}).get("bits_per_byte")])) is not None]
    if not values:
        return None
    found = estimate(own)
    low, high = (found.low, found.high) if found else (None, None)
    return {"architecture": name, "bits_per_byte": statistics.fmean(values), "low": low, "high": high, "seeds": len(values)}


def seeds_sentence(trained: Mapping[str, list[dict[str, Any]]]) -> str:
    """How often each model was trained; the first line of the report."""
    fewest, most = count_seeds(trained.values())
    if most <= 1:
        return ONE_SEED if most else ""
    each = plural(most, "seed") if fewest == most else f"{fewest} to {most} seeds"
    return f"{each} of each model: numbers are means over them, intervals are over documents and seeds."
