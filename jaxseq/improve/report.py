"""The page of `jaxseq improve`: the table, and quality against each cost, with the Pareto front of all models."""

from collections.abc import Mapping
from typing import Any

from jaxseq.compare.figures import Figures
from jaxseq.compare.markup import Markup, join, table, tag, unordered
from jaxseq.compare.provenance import date, device, what_was_run
from jaxseq.compare.report import EMPTY, Section, configs, groups, nothing, notice, page
from jaxseq.compare.summary import header
from jaxseq.compare.words import count, finite, plural, sentence
from jaxseq.improve.summary import rows
from jaxseq.improve.verdicts import verdicts

NOTES = (
    "Bits per byte: how many bits the model needs for each byte of held-out text. The difference is from the model that the row "
    "is made from, with its 95 % interval over documents and seeds, paired in both; the bases are compared with the first one. "
    "“Not told apart” is said where the difference is not significant after Holm's correction for all pairs, and with one seed "
    "also where two models trained apart differ by at most 0.05.",
    "On disk: the bytes of the weights, compressed as `jaxseq compress` writes them for compressed models; parameters do not "
    "include fixed zeros. A model with adapters keeps its base's weights, which are counted.",
    "Speed is that of greedy decoding of one sequence on the machine named below. Zeros and quantized weights save no time here.",
    "Trained on and time: what the row costs in addition to its base. The time of training is without compilation, that of "
    "compressing and migrating with it.",
    "The second text is one that the base has not seen; adapters are trained on it, and lose some of the first text.",
)


def render(results: Mapping[str, Any]) -> str:
    """The page for a results.json of `jaxseq improve`, finished or not. The verdicts are recomputed."""
    found = verdicts(results)
    figures = Figures(results, found)
    shown = rows(results, found)
    charts = [
        ("Quality against cost", figures.tradeoffs() or nothing("There are no two models to compare yet.")),
        ("How they were trained", figures.loss("tokens") or nothing("No training was recorded.")),
    ]
    sections = [
        Section("table", "Table", tag("div", whole(shown, figures), class_="sheet")),
        Section("charts", "Charts", groups(charts)),
        Section("method", "How to read this", unordered(NOTES)),
        Section("run", "What was run", join([what_was_run(results), configs(figures)])),
    ]
    question, lead = "What makes a model better or cheaper?", join([notice(found)])
    return page("jaxseq improve", question, "A table", intro(results, found), lead, sections)


def intro(results: Mapping[str, Any], found: Mapping[str, Any]) -> Markup:
    """How many seeds there are, whether the machine was busy, and what was measured."""
    tokens, data = finite((results.get("budget") or {}).get("tokens")), results.get("data") or {}
    said = plural(len(results.get("architectures") or {}), "model")
    said += f"; those trained from scratch read {count(tokens)} tokens" if tokens else ""
    said += f" of {data.get('path') or data['source']}" if data.get("source") else ""
    said += f", on {where}" if (where := device(results.get("machine") or {})) else ""
    notes = [tag("p", words, class_="seeds") for words in (found["seeds"], found["busy"]) if words]
    return join([*notes, tag("p", sentence(said), class_="lede"), tag("p", date(results), class_="date")])


def whole(shown: list[dict[str, str]], figures: Figures) -> Markup:
    """The table as it is in Markdown, with the markers of the charts."""
    if not shown:
        return nothing("No model has been made yet.")
    columns = header(shown)

    def cell(row: Mapping[str, str], column: str) -> Markup | str:
        if column == "model":
            return figures.name(row[column])
        value = row.get(column) or EMPTY
        return tag("span", value, class_="wide") if column == "what" else value

    cells = [[cell(row, column) for column in columns] for row in shown]
    heads = [column[:1].upper() + column[1:] for column in columns]
    heads = [tag("span", head, class_="wide") if head == "What" else head for head in heads]
    return table("What each model gains and costs", heads, cells, class_="summary")
