"""The results of a comparison in one table and a few sentences."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from jaxseq.compare.words import count, size

HEADLINES = {"At equal tokens": "tokens", "At equal time": "time", "Decoding": "decoding", "Training memory": "memory"}
LINES = 12  # of verdicts in a terminal, where there are many
SERIES = (  # name, where its sizes and its values stand, what the column is called
    ("train_memory", "length", "bytes", "training memory, {}", size),
    ("state_bytes", "context", "bytes", "state, {}", size),
    ("decode", "context", "seconds_per_token", "ms a token, {}", lambda seconds: f"{1000 * seconds:.2f}"),
)


def longest(results: Mapping[str, Any], series: str, by: str, value: str) -> tuple[int, dict[str, float]]:
    """The longest size of a series that any architecture has a value for, and the values of those that have."""
    entries = results["architectures"].items()
    points = [(p[by], name, p[value]) for name, e in entries for p in e.get(series, ()) if p.get(value) is not None]
    most = max((at for at, _, _ in points), default=0)
    return most, {name: figure for at, name, figure in points if at == most}


def rows(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row an architecture, best first, then the Markov models; what is missing is empty."""
    found = []
    series = [(*longest(results, name, by, value), words, show) for name, by, value, words, show in SERIES]
    for name, entry in results["architectures"].items():
        row = {"architecture": name, "parameters": f"{entry['parameters']:,}" if "parameters" in entry else ""}
        if entry["status"].startswith("failed"):
            found.append((float("inf"), row | {"bits/byte": "failed"}))
            continue
        bits = entry["validation"]["bits_per_byte"]
        row |= {"bits/byte": f"{bits:.4f}", "trained in": f"{entry['train_seconds']:.0f} s"}
        row |= {"tokens/s": count(entry["tokens_per_second"])}
        row |= {words.format(most): show(values[name]) for most, values, words, show in series if name in values}
        found.append((bits, row))
    for model in results.get("markov", ()):
        row = {"architecture": f"order-{model['order']} Markov", "bits/byte": f"{model['bits_per_byte']:.4f}"}
        found.append((model["bits_per_byte"], row))
    return [row for _, row in sorted(found, key=lambda item: item[0])]


def header(table_rows: list[dict[str, str]]) -> list[str]:
    """The columns of all rows, in the order of the fullest."""
    fullest_first = sorted(table_rows, key=len, reverse=True)
    return list(dict.fromkeys(key for row in fullest_first for key in row))


def markdown(results: Mapping[str, Any]) -> str:
    """The table as GitHub reads it."""
    table_rows = rows(results)
    columns = header(table_rows)
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *([row.get(name, "") for name in columns] for row in table_rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def show(results: Mapping[str, Any], console: Console) -> None:
    table_rows = rows(results)
    columns = header(table_rows)
    table = Table(*columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for row in table_rows:
        table.add_row(*(row.get(column, "") for column in columns))
    console.print(table)
    found = results["verdicts"]
    for title, key in HEADLINES.items():
        if words := found["headlines"].get(key):
            console.print(f"{title}: {words}", highlight=False, soft_wrap=True)
    lines = [*found["missing"], *found["equal_tokens"], *found["equal_time"]]
    for words in lines[:LINES]:
        console.print(f"- {words}", highlight=False, soft_wrap=True)
    if len(lines) > LINES:
        console.print(f"… and {len(lines) - LINES} more in the report", highlight=False)
