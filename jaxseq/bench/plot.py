"""Draws the times of a benchmark of models against length, on logarithmic axes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxseq.errors import UserError

SUFFIXES = (".svg", ".png", ".pdf")
TITLES = {"train": "milliseconds a training step", "prefill": "milliseconds a prompt", "decode": "milliseconds a token"}


def check(path: str) -> None:
    """Raises UserError if `save` could not write there, before anything is measured."""
    if Path(path).suffix not in SUFFIXES:
        raise UserError(f"--plot={path} must end in one of: {', '.join(SUFFIXES)}")
    if not Path(path).absolute().parent.is_dir():
        raise UserError(f"--plot={path}: there is no folder {Path(path).absolute().parent}; create it")


def save(path: Path, result: Mapping[str, Any]) -> None:
    """One line for each architecture; the lines of its peers are dashed in the same colour."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="tokens", ylabel=TITLES[result["kind"]])
    axes.set_title(f"{result['device']}, {result['dtype']}, width {result['width']}, {result['date']}", fontsize=9)
    for i, name in enumerate(dict.fromkeys(record["architecture"] for record in result["records"])):
        own = [record for record in result["records"] if record["architecture"] == name]
        lines = {name: {r["length"]: r["ours_ms"] for r in own if "ours_ms" in r}}
        for peer in dict.fromkeys(r["peer"] for r in own if "peer" in r):
            lines[f"{name}, {peer.split()[0]}"] = {r["length"]: r["peer_ms"] for r in own if r.get("peer") == peer}
        for label, points in lines.items():
            style = "o-" if label == name else "x--"
            axes.plot(points.keys(), points.values(), style, color=f"C{i % 10}", label=label, markersize=4, linewidth=1)
    axes.grid(which="both", alpha=0.2)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path)
