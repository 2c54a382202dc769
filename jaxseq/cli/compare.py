"""Train architectures of equal size on the same text, side by side, and say which does what.

One command does everything: a size that gives all of them the same number of parameters, the same rows in the same order,
validation, speed, memory, decoding, samples; DIR/results.json and DIR/report.html. Interrupted, the same command goes on and
repeats nothing that is done. Your own text: --config.data.path=FILE (any --config.x.y=value holds for all architectures).
"""

import argparse
import logging
import shlex
import sys
from pathlib import Path

from jaxseq.cli import _config
from jaxseq.errors import UserError

DEFAULT = "transformer,retnet,mamba"
PLAIN_WIDTH = 120  # columns where standard error is no terminal


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
    from jaxseq.compare.presets import PRESETS  # none of this is loaded for --help

    if args.preset not in PRESETS:
        raise UserError(f"there is no preset {args.preset!r}; choose one of: {', '.join(PRESETS)}")
    from rich.console import Console

    from jaxseq import accelerators
    from jaxseq.cli._interrupt import stoppable
    from jaxseq.compare.engine import compare

    accelerators.warn()
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax tells every file that it writes
    console = Console(stderr=True, width=None if sys.stderr.isatty() else PLAIN_WIDTH)
    names = [name for name in args.architectures.split(",") if name] + args.config
    command = shlex.join(["jaxseq", "compare", *sys.argv[2:]])
    with stoppable(console):
        results = compare(
            PRESETS[args.preset], names, args.out, seed=args.seed, seeds=args.seeds, overrides=_config.overrides(args),
            command=command, console=console,
        )  # fmt: skip
    from jaxseq.compare.summary import show

    show(results, console)
    console.print(f"\nreport: {Path(args.out) / 'report.html'}", highlight=False, soft_wrap=True)
    if all(entry["status"].startswith("failed") for entry in results["architectures"].values()):
        raise SystemExit(1)
    return results
