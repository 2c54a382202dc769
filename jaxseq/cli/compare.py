"""Train architectures of equal size on the same text, side by side, and say which does what.

One command does everything: a size that gives all of them the same number of parameters, the same rows in the same order,
validation, speed, memory, decoding, samples; DIR/results.json and DIR/report.html. Interrupted, the same command goes on and
repeats nothing that is done. Your own text: --config.data.path=FILE (any --config.x.y=value holds for all architectures).
"""

import argparse
from pathlib import Path

from jaxseq.cli import _architectures

DEFAULT = "transformer,retnet,mamba"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="standard", metavar="NAME", help="quick (3 minutes on 2 cores) or standard (12)")
    parser.add_argument(
        "--architectures",
        default=DEFAULT,
        metavar="A,B",
        help=f"names and .py files, or all: half an hour with quick (default: {DEFAULT})",
    )
    parser.add_argument(
        "--config", action="append", default=[], metavar="FILE.py", help="one more architecture, of your own; may be repeated"
    )
    parser.add_argument("--out", default="runs/compare", metavar="DIR", help="default: runs/compare")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the order of the text and the samples (default: 0)")
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N",
        help="train each architecture N times, with seeds SEED, SEED+1, …: three or more, and intervals are over seeds, too; "
        "a comparison that is done goes on with more (default: 1)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> dict:
    preset, names, common = _architectures.begin(args)
    from jaxseq.cli._interrupt import stoppable  # none of this is loaded for --help
    from jaxseq.compare.engine import compare

    console = common["console"]
    with stoppable(console):
        results = compare(preset, names, args.out, seed=args.seed, seeds=args.seeds, **common)
    from jaxseq.compare.summary import show

    show(results, console)
    console.print(f"\nreport: {Path(args.out) / 'report.html'}", highlight=False, soft_wrap=True)
    if all(entry["status"].startswith("failed") for entry in results["architectures"].values()):
        raise SystemExit(1)
    return results
