"""Find the learning rate of every architecture, with one grid and one schedule, on documents that no comparison reports.

Each architecture is fitted to the preset's size, as in `jaxseq compare`, and trained once at 1.5e-3, 3e-3 and 6e-3. While the
best rate is the lowest or the highest one tried, the next rate of the grid (a factor of 2 apart) is tried too. Rates are chosen
on every 20th training document; the documents that `jaxseq compare` reports are not read.

The table is in DIR/sweep.json and DIR/sweep.md, which are rewritten after every run. Runs that diverged are marked, and so is a
best rate without a worse one on either side. If the command is interrupted, the same command resumes. A rate holds for the
width at which it was found; for another width it is multiplied by found width / other width.

A sweep takes three to five training runs per architecture. On two free cores, the quick preset takes one to two minutes for
each and 40 minutes for all; the standard preset takes about seven minutes for each and three hours for all.

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
        help="one more architecture, from a file; fields for all: --config.data.path=my.txt --config.train.schedule=linear",
    )  # fmt: skip
    parser.add_argument("--out", default="runs/sweep", metavar="FOLDER", help="default: runs/sweep")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs per rate; their mean counts (default: 1)")


def run(args: argparse.Namespace) -> dict:
    preset, names, common = _architectures.begin(args)
    from jaxseq.cli._interrupt import stoppable  # imported late, so that --help is fast
    from jaxseq.sweep import markdown, sweep

    console = common["console"]
    with stoppable(console):
        results = sweep(preset, names, args.out, seeds=args.seeds, **common)
    print(markdown(results), file=sys.stderr if args.json else sys.stdout)
    console.print(f"\nwrote {Path(args.out) / 'sweep.json'} and sweep.md", highlight=False, soft_wrap=True)
    return results
