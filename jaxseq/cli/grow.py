"""Make a trained model larger without changing what it computes, as the start of further training.

  jaxseq grow --workdir=runs/small --recipe=layers:2+channels:2 --out=runs/large

  jaxseq train --config=runs/large --config.train.init=runs/large \\
    --workdir=runs/longer

A recipe is steps joined by "+", applied in order.

  layers:1.5   1.5 times as many layers; the new ones add nothing at first

  heads:2      twice as many heads of each attention

  channels:2   twice as many hidden channels of each feed-forward

  width:2      a residual stream twice as wide

  experts:8    a mixture of 8 equal experts in place of each feed-forward

After each step the logits on random tokens are compared; a step that would change them is refused. OUT is a workdir for generate,
eval, export and, as --config.train.init, train.
"""

import argparse
import sys
from typing import Any

from jaxseq.cli import _paths


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of a training run")
    parser.add_argument("--recipe", required=True, metavar="STEPS", help="steps joined by +, such as layers:2+channels:2")
    parser.add_argument("--out", required=True, metavar="DIR", help="the new workdir")
    parser.add_argument("--step", type=int, help="checkpoint to take (default: the latest)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers by which copies differ (default: 0)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    _paths.new_folder(args.out, "--out")
    from jaxseq import recipes
    from jaxseq.grow import grow

    recipes.steps("grow", args.recipe)  # before anything is loaded
    say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    result = grow(args.workdir, args.recipe, args.out, step=args.step, seed=args.seed, say=say)
    before, after = result["before"]["parameters"], result["after"]["parameters"]
    say(f"{before:,} -> {after:,} parameters; the logits differ by {result['difference']:.1e} of the largest")
    return result
