"""The results of a comparison in one table and a few sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from jaxseq.compare.runs import mean, runs
from jaxseq.compare.verdicts import verdicts
from jaxseq.compare.words import count, finite, listing, size

HEADLINES = {"At equal tokens": "tokens", "At equal time": "time", "Decoding": "decoding", "Training memory": "memory"}
LINES = 12  # most verdicts shown in a terminal
SERIES = (  # name, field of its sizes, field of its values, column title
    ("train_memory", "length", "bytes", "memory, {}", size),
    ("state_bytes", "context", "bytes", "state, {}", size),
    ("decode", "context", "seconds_per_token", "ms/token, {}", lambda seconds: f"{1000 * seconds:.2f}"),
)


def longest(results: Mapping[str, Any], series: str, by: str, value: str) -> tuple[int, dict[str, float]]:
    """The longest size of a series for which any architecture has a value, and the values there by architecture."""
    entries = results["architectures"].items()
    points = [(p[by], name, p[value]) for name, e in entries for p in e.get(series) or () if p.get(value) is not None]
    most = max((at for at, _, _ in points), default=0)
    return most, {name: figure for at, name, figure in points if at == most}


def rows(results: Mapping[str, Any], found: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row per architecture, best first, then the Markov models; missing values are empty. `found`: the verdicts."""
    out = []
    series = [(*longest(results, name, by, value), words, show) for name, by, value, words, show in SERIES]
    ranked = {row["architecture"]: row for row in found["ranking"]["tokens"]}
    for name, entry in results["architectures"].items():
        row = {"architecture": name, "parameters": f"{entry['parameters']:,}" if entry.get("parameters") else ""}
        own, status, trained = ranked.get(name), str(entry.get("status", "partial")), runs(entry)
        if status.startswith("failed") or own is None:
            out.append((float("inf"), row | {"bits/byte": "failed" if status.startswith("failed") else "partial"}))
            continue
        row |= {"bits/byte": f"{own['bits_per_byte']:.4f}", "95 % interval": interval(own), "seeds": str(own["seeds"])}
        if (seconds := mean(run.get("train_seconds") for run in trained)) is not None:
            row |= {"trained in": f"{seconds:.0f} s"}
        if (speed := mean(run.get("tokens_per_second") for run in trained)) is not None:
            row |= {"tokens/s": count(speed)}
        row |= {words.format(most): show(values[name]) for most, values, words, show in series if name in values}
        out.append((own["bits_per_byte"], row))
    for model in results.get("markov") or ():
        if (bits := finite(model.get("bits_per_byte"))) is not None:
            out.append((bits, {"architecture": f"order-{model['order']} Markov", "bits/byte": f"{bits:.4f}"}))
    return [row for _, row in sorted(out, key=lambda item: item[0])]


def interval(row: Mapping[str, Any]) -> str:
    return "" if row["low"] is None else f"{row['low']:.2f} to {row['high']:.2f}"


def header(table_rows: list[dict[str, str]]) -> list[str]:
    """The columns of all rows, in the order of the row with the most columns."""
    fullest_first = sorted(table_rows, key=len, reverse=True)
    return list(dict.fromkeys(key for row in fullest_first for key in row))


def markdown(results: Mapping[str, Any]) -> str:
    """The number of seeds, whether the machine was busy, and the table in GitHub's Markdown."""
    found = verdicts(results)
    return markdown_of(rows(results, found), [found["seeds"], found["busy"]])


def markdown_of(table_rows: list[dict[str, str]], notes: Sequence[str]) -> str:
    """Paragraphs, empty ones left out, and a table."""
    columns = header(table_rows)
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *([row.get(name, "") for name in columns] for row in table_rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([*filter(None, notes), table])


def width_of(column: str, table_rows: list[dict[str, str]]) -> int:
    """Characters that a column needs: values stay on one line, the title may wrap between words."""
    return max(*(len(word) for word in column.split()), *(len(row.get(column, "")) for row in table_rows))


def fitting(columns: list[str], table_rows: list[dict[str, str]], width: int) -> list[str]:
    """The first columns, as many as fit into `width` characters, but at least two."""
    kept, used = [], 1  # the left edge; every column includes the space on its right
    for column in columns:
        used += width_of(column, table_rows) + 1
        if used > width and len(kept) > 1:
            break
        kept.append(column)
    return kept


def show(results: Mapping[str, Any], console: Console) -> None:
    found = verdicts(results)
    show_table(rows(results, found), [found["seeds"], found["busy"]], console)
    for title, key in HEADLINES.items():
        if words := found["headlines"].get(key):
            console.print(f"{title}: {words}", highlight=False, soft_wrap=True)
    lines = [*found["missing"], *found["equal_tokens"], *found["equal_time"]]
    for words in lines[:LINES]:
        console.print(f"- {words}", highlight=False, soft_wrap=True)
    if len(lines) > LINES:
        console.print(f"… and {len(lines) - LINES} more in the report", highlight=False)


def show_table(table_rows: list[dict[str, str]], notes: Sequence[str], console: Console) -> None:
    """Paragraphs, empty ones left out, and as many columns of a table as fit."""
    for words in filter(None, notes):
        console.print(words, highlight=False, soft_wrap=not console.is_terminal)
    columns = header(table_rows)
    shown = fitting(columns, table_rows, console.width)
    spare = console.width - 1 - sum(width_of(column, table_rows) + 1 for column in shown)
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for column in shown:
        justify = "left" if column == shown[0] else "right"
        width = width_of(column, table_rows)
        more = max(0, min(len(column) - width, spare))  # keep a title on one line if the width allows it
        spare -= more
        table.add_column(column, justify=justify, width=width + more)
    for row in table_rows:
        table.add_row(*(row.get(column, "") for column in shown))
    console.print(table)
    if len(shown) < len(columns):
        hidden = listing(columns[len(shown) :])
        console.print(f"columns left out at this width: {hidden}; they are in the report", highlight=False, soft_wrap=True)
