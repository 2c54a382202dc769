"""Make a trained model smaller by a recipe, and measure what that costs.

  jaxseq compress --workdir=runs/transformer --recipe=int8 --out=runs/int8

  jaxseq compress --workdir=runs/mamba --recipe=channels:0.25+wanda:0.5+nf4 --out=runs/small

A recipe is steps joined by "+", applied in order. Put structured pruning first, then sparsity, then quantization.

  heads:0.25 channels:0.25 layers:0.25     remove this fraction; the model gets smaller and faster

  lowrank:0.5                              each matrix as a product of two, with half of the parameters

  magnitude:0.5 wanda:0.5 sparsegpt:0.5    set this fraction of weights to zero; or 2:4: keep two of four

  states:0.25                              remove state channels of recurrent mixers; the state gets smaller

  int8 int4 nf4 fp8                        8 or 4 bits per weight

  w8a8                                     products of 8-bit weights and 8-bit activations

  ring:int8                                attention's stored keys and values in 8 bits

--rounds=8 --steps=400 reaches the zeros of the recipe's last step in 8 rounds, with 400 steps of training in all; an interrupted
command goes on if it is run again.

OUT is a workdir for generate, eval, export and, as --config.train.init, train. Zeros stay zero in further training; quantized
weights are frozen there, and --config.train.lora_rank=8 trains adapters beside them. Steps that need activations read the run's
training data, or those of --config.data.path=PATH.
"""

import argparse
import sys
from typing import Any

from jaxseq.cli import _config, _paths, _stages
from jaxseq.errors import UserError

SETTABLE = ("data.", "eval.")
TRAINED = ("train.", "mesh.")  # with --rounds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of a training run")
    parser.add_argument("--recipe", required=True, metavar="STEPS", help="steps joined by +, such as wanda:0.5+int8")
    parser.add_argument("--out", required=True, metavar="DIR", help="the new workdir")
    parser.add_argument("--step", type=int, help="checkpoint to take (default: the latest)")
    parser.add_argument("--tokens", type=int, default=8192, metavar="N", help="tokens to calibrate on (default: 8192)")
    parser.add_argument("--rounds", type=int, metavar="N", help="prune in N rounds with training between them")
    parser.add_argument("--steps", type=int, metavar="N", help="of training, of all rounds together")
    parser.set_defaults(config=None)  # accept --config.data.path=PATH and other fields


def run(args: argparse.Namespace) -> dict[str, Any]:
    overrides = _config.overrides(args)
    if fixed := [key for key in overrides if not key.startswith(SETTABLE + (TRAINED if args.rounds else ()))]:
        raise UserError(f"--config.{fixed[0]} was fixed by the run; compress takes only --config.data.… and --config.eval.…")
    if args.tokens < 1:
        raise UserError(f"--tokens={args.tokens} is too small; give a positive number")
    if (args.rounds is None) != (args.steps is None):
        raise UserError("--rounds and --steps belong together: the rounds of pruning, and the steps of training in all of them")
    if args.rounds is not None:
        return _gradual(args, overrides)
    _paths.new_folder(args.out, "--out")
    from jaxseq import compress, recipes

    recipes.steps("compress", args.recipe)  # before anything is loaded
    say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    result = compress.compress(
        args.workdir, args.recipe, args.out, step=args.step, tokens=args.tokens, overrides=overrides, say=say
    )
    for reason in sorted(set(result["left"].values())):
        say(f"left as they were ({reason}): {', '.join(path for path, own in result['left'].items() if own == reason)}")
    _stages.tell(result, say)
    return result


def _gradual(args: argparse.Namespace, overrides: dict[str, Any]) -> dict[str, Any]:
    if args.step is not None:
        raise UserError("--step does not go with --rounds, which continues from the latest checkpoint")
    from jaxseq import compress

    result, say = _stages.run(
        compress.gradual, args.workdir, args.recipe, args.out, rounds=args.rounds, steps=args.steps, tokens=args.tokens,
        overrides=overrides,
    )  # fmt: skip
    _stages.tell(result, say)
    return result
