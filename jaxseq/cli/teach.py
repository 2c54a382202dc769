"""Write what a teacher knows to disk once, to train students from it.

  jaxseq teach --workdir=runs/teacher --kind=text \\
    --documents=500 --out=taught.jsonl

writes texts: prompts from the training data and the teacher's continuations of them. A student learns from them as from any
text, by train --config.data.path=taught.jsonl (sequence-level distillation).

  jaxseq teach --workdir=runs/teacher --kind=logits \\
    --steps=1000 --config.train.batch=8 --out=runs/taught

writes the teacher's largest logits for each token of the first steps. With --config.train.objective=distillation and
--config.train.distill_cache=runs/taught, a student learns from them without the teacher in memory. It needs the same text,
train.length and data.seed; the batch size may differ.
"""

import argparse
import sys
from typing import Any

from jaxseq.cli import _config, _paths
from jaxseq.errors import UserError

FIELDS = {"text": ("data.",), "logits": ("data.", "train.batch", "train.length", "train.form")}
OWN = {"text": ("documents", "prompt", "tokens", "temperature", "top_p", "seed"), "logits": ("steps",)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of the teacher")
    parser.add_argument("--kind", required=True, metavar="KIND", help="text or logits")
    parser.add_argument("--out", required=True, metavar="OUT", help="the new file of text, or folder of logits")
    parser.add_argument("--documents", type=int, metavar="N", help="text: how many (default: 500)")
    parser.add_argument("--prompt", type=int, metavar="N", help="text: tokens of each from the training data (default: 32)")
    parser.add_argument("--tokens", type=int, metavar="N", help="text: new tokens of each, at most (default: 128)")
    parser.add_argument("--temperature", type=float, metavar="X", help="text: 0 for the most likely token (default: 1)")
    parser.add_argument("--top_p", type=float, metavar="X", help="text: sample from tokens of this probability (default: 1)")
    parser.add_argument("--seed", type=int, metavar="N", help="text: of prompts and samples (default: 0)")
    parser.add_argument("--steps", type=int, metavar="N", help="logits: of training (default: 1000)")
    parser.add_argument("--top_k", type=int, metavar="K", help="logits of a token (default: 64), or choices of one of text")
    parser.set_defaults(config=None)  # accept --config.data.path=X and other fields


def run(args: argparse.Namespace) -> dict[str, Any]:
    kind, overrides = args.kind, _config.overrides(args)
    if kind not in FIELDS:
        raise UserError(f"there is no --kind={kind}; choose one of: {', '.join(FIELDS)}")
    for field in overrides:
        if not field.startswith(FIELDS[kind]):
            raise UserError(f"--config.{field} does not change what is written; --kind={kind} takes {', '.join(FIELDS[kind])}…")
    given = {name: value for name in (*OWN[kind], "top_k") if (value := getattr(args, name)) is not None}
    for name in sum((OWN[other] for other in FIELDS if other != kind), ()):
        if getattr(args, name) is not None:
            raise UserError(f"--{name} has no meaning for --kind={kind}; leave it out")
    if kind == "logits":
        _paths.new_folder(args.out, "--out")
    from jaxseq import teach

    defaults = {"text": {"documents": 500}, "logits": {"steps": 1000}}[kind]
    say = lambda line: print(line, end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr)  # noqa: E731
    write = teach.texts if kind == "text" else teach.logits
    result = write(args.workdir, args.out, overrides=overrides, say=say, **defaults | given)
    use = "--config.data.path=" if kind == "text" else "--config.train.objective=distillation --config.train.distill_cache="
    print(f"{args.out}: written; try: jaxseq train --config=NAME {use}{args.out}", file=sys.stderr)
    return result
