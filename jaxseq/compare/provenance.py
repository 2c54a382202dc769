"""The end of the report: what was run, on which machine, when, and what the numbers mean."""

import datetime
from collections.abc import Mapping
from typing import Any

from jaxseq.compare import costs
from jaxseq.compare.intervals import SEED_SPREAD
from jaxseq.compare.judgement import NOT_TOLD_APART
from jaxseq.compare.markup import Markup, definitions, join, tag, unordered
from jaxseq.compare.runs import runs
from jaxseq.compare.words import count, duration, finite, listing, plural, sentence, significant, size


def date(results: Mapping[str, Any]) -> str:
    """The day in words; the stored text if it is not an ISO time."""
    created = str(results.get("created") or "")
    try:
        when = datetime.datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{when.day} {when:%B %Y}"


def device(machine: Mapping[str, Any]) -> str:
    """ "AMD EPYC 7B13, 2 cores" or "8 × TPU v5e"."""
    devices = int(finite(machine.get("devices")) or 1)
    if machine.get("platform") in (None, "cpu"):
        cores = finite(machine.get("cores"))
        return ", ".join(filter(None, [str(machine.get("cpu") or ""), plural(int(cores), "core") if cores else ""]))
    what = str(machine.get("device") or machine["platform"])
    return f"{devices} × {what}" if devices > 1 else what


def what_was_run(results: Mapping[str, Any]) -> Markup:
    """Machine, versions, seed, command, budget, data and date."""
    machine, data, budget = (results.get(part) or {} for part in ("machine", "data", "budget"))
    peak, memory = finite(machine.get("matmul_flops_per_second")), finite(machine.get("memory_bytes"))
    versions = {"python": machine.get("python")} | dict(machine.get("versions") or {})
    budget_said = [f"{key} {amount(value)}" for key, value in budget.items() if value is not None]
    data_said = [f"{key.replace('_', ' ')} {amount(value)}" for key, value in data.items() if value is not None]
    return definitions(
        [
            ("Command", command(results)),
            ("Preset", results.get("preset")),
            ("Date", results.get("created")),
            ("Seeds", listing([str(seed) for seed in results.get("seeds") or [results.get("seed")] if seed is not None])),
            ("Budget", "; ".join(budget_said)),
            ("Data", "; ".join(data_said)),
            ("Machine", device(machine)),
            ("Backend", machine.get("platform")),
            ("Devices", machine.get("devices")),
            ("Memory", size(memory) if memory else None),
            ("Matrix products", f"{significant(peak / 1e9)} GFLOP/s measured" if peak else None),
            ("Versions", ", ".join(f"{key} {value}" for key, value in versions.items() if value)),
            ("Training time", times_said(results, "train_seconds")),
            ("Compilation", times_said(results, "compile_seconds")),
        ]
    )


def command(results: Mapping[str, Any]) -> Markup | None:
    """The command line, with line breaks only between words where possible."""
    words = str(results.get("command") or "").split(" ")
    return tag("code", join((tag("span", word) for word in words), " ")) if any(words) else None


def amount(value: Any) -> str:
    number = finite(value)
    return str(value) if number is None else count(number) if number == int(number) else significant(number)


def times_said(results: Mapping[str, Any], key: str) -> str | None:
    """The sum over all architectures and its range."""
    trained = [run for entry in (results.get("architectures") or {}).values() for run in runs(entry)]
    found = [value for run in trained if (value := finite(run.get(key))) is not None]
    if not found:
        return None
    return duration(sum(found)) + (f" in all; {duration(min(found))} to {duration(max(found))} each" if len(found) > 1 else "")


def method(results: Mapping[str, Any], found: Mapping[str, Any]) -> Markup:
    """What the numbers mean and what they do not."""
    pairs = [pair for pair in found["pairs"] if pair["basis"] == "tokens"]
    documents, seeds = (max((pair[key] for pair in pairs), default=0) for key in ("documents", "seeds"))
    tokens = finite((results.get("budget") or {}).get("tokens"))
    parameters = [int(p) for e in (results.get("architectures") or {}).values() if (p := finite(e.get("parameters")))]
    percent = f"{100 * (costs.NOISE - 1):.0f} %"
    notes = [
        "Bits per byte: how many bits the model needs for each byte of held-out text, the end of each document included. "
        "No tokenizer can flatter it.",
        f"Intervals are of 95 %, over {plural(documents, 'validation document')} and {plural(seeds, 'seed')}, paired in both: "
        "the variance is that of a jackknife over documents and of one over seeds, the degrees of freedom are Satterthwaite's. "
        + ("They cover the choice of documents, not the choice of the seed." if seeds == 1 else "")
        if documents > 1
        else "",
        "A model is ahead if the interval excludes 0 and still does after Holm's correction for "
        f"{plural(len(pairs), 'comparison')}: if all models were equal, the chance that any is called ahead is 5 %. Intervals "
        "are shown without the correction."
        if len(pairs) > 1
        else "",
        f"“{sentence(NOT_TOLD_APART)[:-1]}” is said in all other cases: if an interval spans 0, if there is none, and if a "
        "model is no better than a Markov model of order 2, which sees the two previous tokens"
        + (f"; with one seed, also where the difference is at most {SEED_SPREAD} bits per byte." if seeds == 1 else "."),
        f"Equal time is the moment when the first architecture finished its training ({duration(found['time'])}); the values of "
        "the others at that moment are interpolated linearly between two evaluations. Compilation is not counted."
        if found["time"] is not None
        else "",
        "Training memory is what the compiler plans for one step on one row, not what was observed. Times are measured on the "
        f"machine named below; the verdicts treat differences under {percent} as equal. Another machine will give other times.",
        "Learning rates come from the sources named in the table.",
        f"These are models of {count(min(parameters))} to {count(max(parameters))} parameters after {count(tokens)} tokens. "
        "They do not show what happens at a thousand times the size."
        if parameters and tokens
        else "",
    ]
    return unordered(filter(None, notes))
