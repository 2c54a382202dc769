"""The table: one row per model, in text and Markdown."""

from collections.abc import Mapping
from typing import Any

from jaxseq.compare import costs
from jaxseq.compare.runs import mean, runs
from jaxseq.compare.summary import markdown_of
from jaxseq.compare.words import decimal, duration, energy, finite, short_count, significant, size
from jaxseq.improve.verdicts import verdicts


def markdown(results: Mapping[str, Any]) -> str:
    """The number of seeds, whether the machine was busy, and the table in GitHub's Markdown."""
    found = verdicts(results)
    return markdown_of(rows(results, found), [found["seeds"], found["busy"]])


def rows(results: Mapping[str, Any], found: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row per model, in the order of the table; missing values are empty, columns without any value are left out.
    `found`: the verdicts."""
    entries = results["architectures"]
    scores = {row["architecture"]: row["bits_per_byte"] for row in found["ranking"]["tokens"]}
    gaps = {(pair["a"], pair["b"]): difference(pair) for pair in found["pairs"]}
    first = next(iter(entries), "")
    whole = [row_of(name, entry, first, scores.get(name), gaps) for name, entry in entries.items()]
    return [{key: value for key, value in row.items() if any(other.get(key) for other in whole)} for row in whole]


def row_of(
    name: str, entry: Mapping[str, Any], first: str, score: float | None, gaps: Mapping[tuple[str, str], str]
) -> dict[str, str]:
    """A row of the table. first: the first row, with which the other bases are compared."""
    made, trained = entry.get("row") or {}, runs(entry)
    out = {"model": name, "what": made.get("about", "")}
    if score is None:
        return out | {"bits per byte": "failed" if str(entry.get("status")).startswith("failed") else "partial"}
    second = mean((run.get("second") or {}).get("bits_per_byte") for run in trained)
    return out | {
        "bits per byte": f"{score:.4f}",
        **figures(entry),
        **effort(trained),
        "against its base": gaps.get((name, made.get("base") or first), ""),
        "against the same from scratch": gaps.get((name, made.get("scratch")), ""),
        "second text": "" if second is None else f"{second:.4f}",
    }


def figures(entry: Mapping[str, Any]) -> dict[str, str]:
    """The sizes and the speed of a model."""
    out = {"parameters": f"{entry['parameters']:,}" if entry.get("parameters") else ""}
    if (stored := finite(entry.get("disk_bytes"))) is not None:
        out["on disk"] = size(stored)
    if decoding := costs.series(entry, costs.DECODE):
        context = max(decoding)
        out[f"tokens/s at context {context}"] = significant(1 / decoding[context])
    if state := costs.series(entry, costs.STATE):
        out[f"state at context {max(state)}"] = size(state[max(state)])
    if points := entry.get(costs.ENERGY.part):
        spent = costs.series(entry, costs.ENERGY)
        out[f"energy/token at context {points[-1]['context']}"] = energy(spent[max(spent)]) if spent else "not measured"
    return out


def effort(trained: list[Mapping[str, Any]]) -> dict[str, str]:
    """Tokens and time that the model cost beyond its base: of one run, the mean over seeds."""
    tokens = mean(run["curve"][-1]["tokens"] if run.get("curve") else run.get("making_tokens") for run in trained)
    seconds = mean(run.get("train_seconds", run.get("making_seconds")) for run in trained)
    if tokens is None or seconds is None:
        return {"trained on": "", "time": ""}
    return {"trained on": short_count(tokens) if tokens else "0", "time": duration(seconds)}


def difference(pair: Mapping[str, Any]) -> str:
    """ "+0.012 (0.010 to 0.014)", with "not told apart" if it is not significant."""
    shown = f"{'+' if pair['difference'] > 0 else ''}{decimal(pair['difference'], 4)}"
    if pair["low"] is not None:
        shown += f" ({decimal(pair['low'], 4)} to {decimal(pair['high'], 4)})"
    return shown + ("" if pair["told"] else ", not told apart")
