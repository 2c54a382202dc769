"""Find the learning rate of every architecture: one grid, one schedule, documents that no comparison reports.

Each architecture is fitted to the preset's size, as `jaxseq compare` does, and trained once at 1.5e-3, 3e-3 and 6e-3.
Where the best is the lowest or the highest, the next rate of the grid (a factor of 2 apart) is tried, until a worse one stands
on either side. Every 20th of the training documents tunes; those that `jaxseq compare` reports are not read.

DIR/sweep.json and DIR/sweep.md hold the table, rewritten after every run: a run that diverged is told so, a best rate without a
worse one on either side is marked. Interrupted, the same command goes on. A rate is for the width that it was found at; at
another width it is multiplied by found width / other width.

How long: three to five trainings an architecture. On two free cores one to two minutes for each with the quick preset, 40
minutes for all; about seven minutes for each with standard, three hours for all.

  jaxseq sweep --preset=quick --architectures=transformer,mamba     a few minutes
  jaxseq sweep --architectures=all --out=runs/sweep                 the whole table
"""

import argparse
import sys
from pathlib import Path

from jaxseq.cli import _architectures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="quick", metavar="NAME", help="the size and budget: quick (default) or standard")
    parser.add_argument("--architectures", default="all", metavar="A,B", help="names and .py files (default: all)")
    parser.add_argument(
        "--config", action="append", default=[], metavar="FILE.py",
        help="one more architecture, of your own; fields for all: --config.data.path=my.txt --config.train.schedule=linear",
    )  # fmt: skip
    parser.add_argument("--out", default="runs/sweep", metavar="DIR", help="default: runs/sweep")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="trainings of each rate; the mean counts (default: 1)")


def run(args: argparse.Namespace) -> dict:
    preset, names, common = _architectures.begin(args)
    from jaxseq.cli._interrupt import stoppable  # none of this is loaded for --help
    from jaxseq.sweep import markdown, sweep

    console = common["console"]
    with stoppable(console):
        results = sweep(preset, names, args.out, seeds=args.seeds, **common)
    print(markdown(results), file=sys.stderr if args.json else sys.stdout)
    console.print(f"\nwrote {Path(args.out) / 'sweep.json'} and sweep.md", highlight=False, soft_wrap=True)
    return results
