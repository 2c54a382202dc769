"""The results of a comparison in one table and a few sentences."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from jaxseq.compare.words import count, size

HEADLINES = {"At equal tokens": "tokens", "At equal time": "time", "Decoding": "decoding", "Training memory": "memory"}


def last(entry: Mapping[str, Any], series: str, value: str) -> tuple[int, float] | None:
    """(length, value) of the longest point of a series that has a value."""
    by = "context" if series in ("decode", "state_bytes") else "length"
    points = [(p[by], p[value]) for p in entry.get(series, ()) if p.get(value) is not None]
    return max(points) if points else None


def rows(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row an architecture, best first, then the Markov models; what is missing is empty."""
    found = []
    for name, entry in results["architectures"].items():
        row = {"architecture": name, "parameters": f"{entry['parameters']:,}" if "parameters" in entry else ""}
        if entry["status"].startswith("failed"):
            found.append((float("inf"), row | {"bits/byte": "failed"}))
            continue
        bits = entry["validation"]["bits_per_byte"]
        row |= {"bits/byte": f"{bits:.4f}", "trained in": f"{entry['train_seconds']:.0f} s"}
        row |= {"tokens/s": count(entry["tokens_per_second"])}
        for series, value, words, show in (
            ("train_memory", "bytes", "training memory, {}", size),
            ("state_bytes", "bytes", "state, {}", size),
            ("decode", "seconds_per_token", "ms a token, {}", lambda seconds: f"{1000 * seconds:.2f}"),
        ):
            if point := last(entry, series, value):
                row[words.format(point[0])] = show(point[1])
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
    for words in [*found["missing"], *found["equal_tokens"], *found["equal_time"]]:
        console.print(f"- {words}", highlight=False, soft_wrap=True)
