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
    """One line for each architecture; a peer's line is dashed in the same colour."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="tokens", ylabel=TITLES[result["kind"]])
    axes.set_title(f"{result['device']}, {result['dtype']}, width {result['width']}, {result['date']}", fontsize=9)
    for i, name in enumerate(dict.fromkeys(record["architecture"] for record in result["records"])):
        for key, style, label in (("ours_ms", "o-", name), ("peer_ms", "x--", f"{name}, peer")):
            points = [(r["length"], r[key]) for r in result["records"] if r["architecture"] == name and key in r]
            if points:
                axes.plot(*zip(*points, strict=True), style, color=f"C{i % 10}", label=label, markersize=4, linewidth=1)
    axes.grid(which="both", alpha=0.2)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path)
