"""Train architectures of equal size on the same text and compare their quality, speed and memory.

One command does everything. It gives all architectures the same number of parameters, trains them on the same rows in the same
order, and measures validation, speed, memory and decoding. It writes DIR/results.json and DIR/report.html. If it is
interrupted, the same command resumes and does not repeat finished work. To use your own text, give --config.data.path=FILE;
any --config.x.y=value applies to all architectures.
"""

import argparse

from jaxseq import paths
from jaxseq.cli import _architectures

DEFAULT = "transformer,retnet,mamba"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="standard", metavar="NAME", help="quick (3 minutes on 2 cores) or standard (12)")
    parser.add_argument(
        "--architectures",
        default=DEFAULT,
        metavar="A,B",
        help=f"names and .py files, or all, which takes half an hour with quick (default: {DEFAULT})",
    )
    parser.add_argument(
        "--config", action="append", default=[], metavar="FILE.py", help="one more architecture, from a file; may be repeated"
    )
    parser.add_argument("--out", default="runs/compare", metavar="DIR", help="default: runs/compare")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, text order and samples (default: 0)")
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N",
        help="train each architecture N times, with seeds SEED, SEED+1, …; use 3 or more for intervals over seeds; "
        "seeds can be added to a finished comparison (default: 1)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> dict:
    preset, names, common = _architectures.begin(args)
    from jaxseq.cli._interrupt import stoppable  # imported late, so that --help is fast
    from jaxseq.compare.engine import compare

    console = common["console"]
    with stoppable(console):
        results = compare(preset, names, args.out, seed=args.seed, seeds=args.seeds, **common)
    from jaxseq.compare.summary import show

    show(results, console)
    console.print(f"\nreport: {paths.of(args.out) / 'report.html'}", highlight=False, soft_wrap=True)
    if all(entry["status"].startswith("failed") for entry in results["architectures"].values()):
        raise SystemExit(1)
    return results
