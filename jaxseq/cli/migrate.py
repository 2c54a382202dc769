"""Turn a trained Transformer into a linear-time or hybrid model.

  jaxseq migrate --workdir=runs/transformer --to=gla --out=runs/gla

  jaxseq migrate --workdir=runs/llama --to=gla,gla,gla,window:128 \\
    --out=runs/hybrid --context=8192 --config.train.lr=3e-4

--to names what the attention of consecutive layers becomes, repeated over the layers.

  gla retention mamba2 rwkv6   linear attention of this kind

  window:128                   attention to the last 128 tokens

  attention                    stays as it is

The new mixers take over the projections of the attention. Then the model is trained in three stages, for which --steps gives the
numbers of steps: each new mixer learns the outputs of the attention in its place; the residual stream after each block follows
the old model's; and the new model learns the old one's distribution of next tokens, and the text. An interrupted migration goes
on if the same command is run again.

OUT is a workdir for generate, eval, export and train. Printed are the quality after each stage, decoding speed and state size
before and after, and the number of decoded tokens that pays for the migration.
"""

import argparse
from typing import Any

from jaxseq.cli import _config, _stages
from jaxseq.errors import UserError

SETTABLE = ("data.", "eval.", "train.", "mesh.")
FIXED = ("train.objective", "train.init", "train.steps", "train.warmup", "train.decay_steps", "train.distill_teacher")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of a training run")
    parser.add_argument("--to", required=True, metavar="NAMES", help="what attention becomes, such as gla or gla,window:128")
    parser.add_argument("--out", required=True, metavar="DIR", help="the new workdir")
    parser.add_argument("--steps", default="200,200,600", metavar="A,B,C", help="of the three stages (default: 200,200,600)")
    parser.add_argument("--context", type=int, metavar="N", help="tokens after which decoding is timed (default: train.length)")
    parser.add_argument("--seed", type=int, default=0, help="of new parameters (default: 0)")
    parser.set_defaults(config=None)  # accept --config.train.lr=X and other fields


def run(args: argparse.Namespace) -> dict[str, Any]:
    overrides = _config.overrides(args)
    for field in overrides:
        if not field.startswith(SETTABLE) or field in FIXED:
            raise UserError(f"--config.{field} is set by migrate; it takes --config.data.…, eval.…, mesh.… and most of train.…")
    if args.context is not None and args.context < 2:
        raise UserError(f"--context={args.context} is too short; give 2 or more tokens")
    words = args.steps.split(",")
    if not all(word.isascii() and word.isdecimal() and len(word) < 10 for word in words):
        raise UserError(f"--steps={args.steps} must be three numbers, such as 200,200,600")
    from jaxseq.migrate import migrate

    result, say = _stages.run(
        migrate, args.workdir, args.to, args.out, steps=tuple(map(int, words)), seed=args.seed, overrides=overrides,
        context=args.context,
    )  # fmt: skip
    for stage in result["stages"]:
        say(f"{stage['stage'].replace('_', ' '):14} {stage['tokens']:14,} tokens {stage['bits_per_byte']:9.4f} bits per byte")
    _stages.tell(result, say)
    pays = result["break_even_tokens"]
    say(f"decoding after {result['context']:,} tokens " + (f"pays after {pays:,.0f} tokens" if pays else "is not faster"))
    return result
