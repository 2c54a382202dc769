"""Make a trained model smaller by a recipe, and measure what that costs.

  jaxseq compress --workdir=runs/transformer --recipe=int8 --out=runs/int8

  jaxseq compress --workdir=runs/mamba --recipe=channels:0.25+wanda:0.5+nf4 --out=runs/small

A recipe is steps joined by "+", applied in order. Put structured pruning first, then sparsity, then quantization.

  heads:0.25 channels:0.25 layers:0.25     remove this fraction; the model gets smaller and faster

  lowrank:0.5                              each matrix as a product of two, with half of the parameters

  magnitude:0.5 wanda:0.5 sparsegpt:0.5    set this fraction of weights to zero; or 2:4: keep two of four

  int8 int4 nf4 fp8                        8 or 4 bits per weight

OUT is a workdir for generate, eval, export and, as --config.train.init, train. Zeros stay zero in further training; quantized
weights are frozen there, and --config.train.lora_rank=8 trains adapters beside them. Steps that need activations read the run's
training data, or those of --config.data.path=PATH.
"""

import argparse
import sys
from typing import Any

from jaxseq.cli import _config, _paths
from jaxseq.errors import UserError

SETTABLE = ("data.", "eval.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of a training run")
    parser.add_argument("--recipe", required=True, metavar="STEPS", help="steps joined by +, such as wanda:0.5+int8")
    parser.add_argument("--out", required=True, metavar="DIR", help="the new workdir")
    parser.add_argument("--step", type=int, help="checkpoint to take (default: the latest)")
    parser.add_argument("--tokens", type=int, default=8192, metavar="N", help="tokens to calibrate on (default: 8192)")
    parser.set_defaults(config=None)  # accept --config.data.path=PATH and other fields


def run(args: argparse.Namespace) -> dict[str, Any]:
    overrides = _config.overrides(args)
    if fixed := [key for key in overrides if not key.startswith(SETTABLE)]:
        raise UserError(f"--config.{fixed[0]} was fixed by the run; compress takes only --config.data.… and --config.eval.…")
    if args.tokens < 1:
        raise UserError(f"--tokens={args.tokens} is too small; give a positive number")
    _paths.new_folder(args.out, "--out")
    from jaxseq import compress, recipes

    recipes.steps("compress", args.recipe)  # before anything is loaded
    say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    result = compress.compress(
        args.workdir, args.recipe, args.out, step=args.step, tokens=args.tokens, overrides=overrides, say=say
    )
    for reason in sorted(set(result["left"].values())):
        say(f"left as they were ({reason}): {', '.join(path for path, own in result['left'].items() if own == reason)}")
    for name in result["before"]:
        before, after = result["before"][name], result["after"][name]
        if before is not None:
            say(f"{name.replace('_', ' '):18} {before:14,.6g} -> {after:14,.6g}")
    return result
