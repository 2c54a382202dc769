"""report.html: one file that opens offline, without scripts. Its sentences come from the verdicts."""

import json
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

from jaxseq.compare import costs
from jaxseq.compare.figures import Figures
from jaxseq.compare.judgement import ALL_PAIRS
from jaxseq.compare.markup import Markup, folded, join, table, tag, unordered
from jaxseq.compare.provenance import date, device, method, what_was_run
from jaxseq.compare.runs import mean, runs
from jaxseq.compare.verdicts import verdicts
from jaxseq.compare.words import count, decimal, energy, finite, plural, sentence, significant, size

SHOWN = 5  # sentences of one kind shown before the rest is folded away
SAMPLE = 1200  # characters of a sample
EMPTY = "–"
SETTINGS = ("Width", "Learning rate", "Its source", "Stack", "Forms")


class Section(NamedTuple):
    id: str
    heading: str
    content: Markup


def render(results: Mapping[str, Any]) -> str:
    """The page for a results.json, finished or not. Deterministic; the verdicts are recomputed."""
    found = verdicts(results)
    figures = Figures(results, found)
    charts = [
        ("How well they learn", figures.quality() or nothing("No training was recorded.")),
        ("What training costs", figures.training() or nothing("Training speed and memory were not measured.")),
        ("What running them costs", figures.inference() or nothing("Decoding, state and prompts were not measured.")),
    ]
    sections = [
        Section("verdicts", "Verdicts", tag("div", verdict_lists(found, figures), class_="lists")),
        Section("charts", "Charts", groups(charts)),
        Section("summary", "Summary", tag("div", summary(found, figures), class_="sheet")),
        Section("samples", "Samples", samples(figures)),
        Section("method", "How to read this", method(results, found)),
        Section("run", "What was run", join([what_was_run(results), configs(figures)])),
    ]
    lead = join([headlines(found), notice(found)])
    return page("jaxseq compare", "What should replace the Transformer?", "A comparison", intro(results, found), lead, sections)


def page(command: str, question: str, kind: str, intro: Markup, lead: Markup, sections: Sequence[Section]) -> str:
    """The whole page. command: that wrote the results; question: the main heading; lead: what comes before the sections."""
    template = resources.files("jaxseq.compare").joinpath("report_template.html").read_text(encoding="utf-8")
    parts = (
        tag("section", tag("h2", one.heading, id=f"{one.id}-head"), one.content, id=one.id, aria_labelledby=f"{one.id}-head")
        for one in sections
    )
    return string.Template(template).substitute(
        title=f"{question} {kind} by jaxseq",
        command=command,
        question=question,
        first=sections[0].id,
        intro=intro,
        nav=unordered(tag("a", one.heading, href=f"#{one.id}") for one in sections),
        lead=lead,
        sections=join(parts, "\n"),
    )


def groups(charts: Sequence[tuple[str, Markup]]) -> Markup:
    """Charts under the headings of their groups."""
    return join(join([tag("p", title, class_="group"), tag("div", shown, class_="charts")]) for title, shown in charts)


def nothing(why: str) -> Markup:
    return tag("p", why, class_="nothing")


def intro(results: Mapping[str, Any], found: Mapping[str, Any]) -> Markup:
    """How many seeds there are, whether the machine was busy, and what was compared."""
    architectures, budget, data = (results.get(part) or {} for part in ("architectures", "budget", "data"))
    machine = results.get("machine") or {}
    parameters, tokens = finite(budget.get("parameters")), finite(budget.get("tokens"))
    said = plural(len(architectures), "architecture")
    said += f" of about {count(parameters)} parameters" if parameters else ""
    said += f", trained on {count(tokens)} tokens" if tokens else ""
    said += f" of {data.get('path') or data['source']}" if data.get("source") else ""
    said += f", on {where}" if (where := device(machine)) else ""
    notes = [tag("p", words, class_="seeds") for words in (found["seeds"], found["busy"]) if words]
    return join([*notes, tag("p", sentence(said), class_="lede"), tag("p", date(results), class_="date")])


def notice(found: Mapping[str, Any]) -> Markup | str:
    """A notice of the architectures that were not run to the end."""
    if not found["missing"]:
        return ""
    return tag("aside", tag("strong", "Not everything was run to the end"), unordered(found["missing"]), class_="notice")


def headlines(found: Mapping[str, Any]) -> Markup:
    """The four headlines at the top."""
    said = found["headlines"]
    cards = [
        ("At equal tokens", said["tokens"]),
        ("At equal time", said["time"]),
        ("Decoding", said["decoding"]),
        ("Training memory", said["memory"]),
    ]
    shown = [tag("div", tag("dt", title), tag("dd", words)) for title, words in cards if words]
    return tag("dl", *shown, class_="cards") if shown else nothing("There are no two architectures to compare yet.")


def verdict_lists(found: Mapping[str, Any], figures: Figures) -> Markup:
    """All sentences by kind. The common beginning of each basis' sentences is shown once, above them."""
    blocks = []
    for key, basis in (("equal_tokens", "tokens"), ("equal_time", "time")):
        when = found["when"][basis]
        said = [sentence(words.removeprefix(f"{when}, ")) for words in found[key]]
        blocks.append(verdict_list(when, said, pair_table(found, figures, basis, when)))
    blocks.append(verdict_list("Against a Markov model", found["markov"]))
    blocks += [verdict_list(title, found[key]) for title, key in (("Training speed", "speed"), ("Training memory", "memory"))]
    blocks.append(verdict_list("Decoding", found["decoding"]))
    return join(filter(None, blocks))


def verdict_list(title: str, sentences: list[str], extra: Markup | str = "") -> Markup | None:
    if not sentences:
        return None
    split = len(sentences) if len(sentences) <= SHOWN + 1 else SHOWN
    shown, rest = sentences[:split], sentences[split:]
    more = folded(f"{len(rest)} more", unordered(rest, class_="verdicts")) if rest else ""
    return tag("section", tag("h3", title), unordered(shown, class_="verdicts"), more, extra)


def pair_table(found: Mapping[str, Any], figures: Figures, basis: str, when: str) -> Markup | str:
    """Every pair: row minus column, bold if one of the two is ahead."""
    order = [row["architecture"] for row in found["ranking"][basis]]
    if len(order) <= ALL_PAIRS:
        return ""
    pairs = {(pair["a"], pair["b"]): pair for pair in found["pairs"] if pair["basis"] == basis}

    def cell(a: str, b: str) -> Markup | str:
        if a == b:
            return ""
        value = pairs[a, b]["difference"] if (a, b) in pairs else -pairs[b, a]["difference"]
        ranked = not (pairs.get((a, b)) or pairs[b, a])["reason"]
        shown = decimal(value, 2)
        return tag("b", shown, class_="ahead" if value < 0 else "behind") if ranked else tag("span", shown, class_="open")

    rows = [[figures.labels[a], *(cell(a, b) for b in order)] for a in order]
    caption = (
        f"{when}: bits per byte of the row minus those of the column; bold if one is ahead, grey if they are not told apart"
    )
    return folded("All pairs", table(caption, ["", *(figures.labels[name] for name in order)], rows, class_="pairs"))


def summary(found: Mapping[str, Any], figures: Figures) -> Markup:
    """One row per architecture, best first; those without a validation last."""
    ranked = {row["architecture"]: row for row in found["ranking"]["tokens"]}
    order = [*ranked, *(name for name in figures.architectures if name not in ranked)]
    if not order:
        return nothing("No architecture has been run yet.")
    metrics = (costs.TRAIN_MEMORY, costs.STATE, costs.DECODE, costs.ENERGY)
    longest = {metric: furthest(figures.architectures, metric) for metric in metrics}
    head = [
        "Architecture",
        "Parameters",
        "Bits per byte",
        "95 % interval",
        "Seeds",
        "Perplexity",
        "Tokens/s",
        f"Training memory{at(longest[costs.TRAIN_MEMORY])}",
        f"State{at(longest[costs.STATE])}",
        f"Decoding, ms/token{at(longest[costs.DECODE])}",
        f"Energy/token{at(longest[costs.ENERGY])}",
        "On disk",
        "Status",
    ]
    rows = [summary_row(name, figures, ranked.get(name), longest) for name in order]
    shown = [i for i in range(len(head)) if any(row[i] != EMPTY for row in rows)]  # a column without any value is left out
    head, rows = [head[i] for i in shown], [[row[i] for i in shown] for row in rows]
    whole = table("Summary, best at equal tokens first", head, rows, class_="summary")
    return join([whole, table("How each was trained", ["Architecture", *SETTINGS], settings(order, figures), class_="settings")])


def settings(order: Sequence[str], figures: Figures) -> Iterator[list[Any]]:
    """One row per architecture: the settings that were chosen for it."""
    for name in order:
        entry = figures.architectures[name]
        forms = [f"{op}: {form}" for op, form in sorted((entry.get("forms") or {}).items())]
        model = (entry.get("config") or {}).get("model") or {}
        yield [
            figures.name(name),
            str(model.get("width") or EMPTY),
            number(entry.get("lr"), lambda value: f"{value:.4g}"),
            *(
                tag("span", said or EMPTY, class_="wide")
                for said in (entry.get("lr_source"), model.get("stack"), ", ".join(forms))
            ),
        ]


def furthest(architectures: Mapping[str, Any], metric: costs.Metric) -> int | None:
    return max((max(found) for entry in architectures.values() if (found := costs.series(entry, metric))), default=None)


def at(length: int | None) -> str:
    return f" at {count(length)}" if length else ""


def summary_row(name: str, figures: Figures, ranked: Mapping[str, Any] | None, longest: Mapping) -> list[Any]:
    entry = figures.architectures[name]
    low, high = (ranked["low"], ranked["high"]) if ranked else (None, None)
    trained = runs(entry)
    status = str(entry.get("status") or "partial")
    return [
        figures.name(name),
        number(entry.get("parameters"), count),
        number(ranked and ranked["bits_per_byte"], lambda value: decimal(value, 3)),
        f"{decimal(low, 3)} to {decimal(high, 3)}" if low is not None else EMPTY,
        str(ranked["seeds"]) if ranked else EMPTY,
        number(mean(run.get("validation", {}).get("perplexity") for run in trained), lambda value: decimal(value, 2)),
        number(mean(run.get("tokens_per_second") for run in trained), significant),
        measured(entry, costs.TRAIN_MEMORY, longest, size),
        measured(entry, costs.STATE, longest, size),
        measured(entry, costs.DECODE, longest, lambda value: significant(1000 * value)),
        measured(entry, costs.ENERGY, longest, energy),
        number(entry.get("disk_bytes"), size),
        status if status in ("done", "partial") else tag("span", status, class_="wide failed"),
    ]


def number(value: Any, say: Callable[[float], str]) -> str:
    found = finite(value)
    return EMPTY if found is None else say(found)


def measured(entry: Mapping[str, Any], metric: costs.Metric, longest: Mapping, say: Callable[[float], str]) -> str:
    """The measurement at the longest length of all, or at the architecture's own longest length, which is then named."""
    found = costs.series(entry, metric)
    if not found:
        return "not measured" if entry.get(metric.part) else EMPTY
    last = max(found)
    return say(found[last]) + ("" if last == longest[metric] else at(last))


def samples(figures: Figures) -> Markup:
    """A sample from each model, with the prompt marked."""
    cards = []
    for name, entry in figures.architectures.items():
        shown = [sample for sample in entry.get("samples") or () if sample.get("text") is not None]
        if shown:
            texts = [
                tag("pre", tag("span", sample.get("prompt") or "", class_="prompt"), cut(str(sample["text"])), tabindex="0")
                for sample in shown
            ]
            cards.append(tag("article", tag("h3", figures.name(name)), *texts))
    return tag("div", *cards, class_="samples") if cards else nothing("No samples were drawn.")


def cut(sample: str) -> str:
    return sample if len(sample) <= SAMPLE else sample[:SAMPLE] + " …"


def configs(figures: Figures) -> Markup | str:
    """Each architecture's full configuration, folded."""
    shown = []
    for name, entry in figures.architectures.items():
        title = str(entry.get("title") or figures.labels[name])
        if entry.get("config"):
            body = json.dumps(entry["config"], indent=2, ensure_ascii=False, default=str)
            shown.append(folded(join([figures.name(name), tag("span", title, class_="title")]), tag("pre", body, tabindex="0")))
    return join([tag("h3", "Configurations"), *shown]) if shown else ""
