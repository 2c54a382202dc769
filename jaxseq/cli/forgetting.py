"""Fine-tune a model on the text of a domain, and measure what it has learned and what it has forgotten.

  jaxseq forgetting --before=runs/base --domain=law.txt --general=web.txt \\
    --steps=500 --replay=0.1 --out=runs/law

trains the model of runs/base for 500 steps on law.txt, with a tenth of the training tokens from web.txt (replay, the remedy
against forgetting). Then it scores the models before and after on the held-out parts of both texts, in bits per byte. An
interrupted command goes on if it is run again.

  jaxseq forgetting --before=runs/base --after=runs/law --domain=law.txt \\
    --general=web.txt

only scores a model that was fine-tuned before.
"""

import argparse
import sys
from typing import Any

from jaxseq.cli import _stages
from jaxseq.cli import eval as evaluation
from jaxseq.errors import UserError

TEXTS = ("domain", "general")
TOKENS = 1_000_000  # that are scored of each text, unless --config.eval.tokens says otherwise
TRAINED = ("train.", "mesh.")  # with --out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--before", required=True, metavar="DIR", help="workdir that fine-tuning starts from")
    parser.add_argument("--after", metavar="DIR", help="workdir of a model that was fine-tuned, to score it without training")
    parser.add_argument("--out", metavar="DIR", help="train, and write the new workdir here")
    parser.add_argument("--steps", type=int, metavar="N", help="of training, with --out")
    parser.add_argument("--replay", type=float, metavar="SHARE", help="of the training tokens from the general text (default: 0)")
    parser.add_argument("--domain", required=True, metavar="FILE", help="the text it is tuned on, a file or folder")
    parser.add_argument("--general", required=True, metavar="FILE", help="other text, which it should still know")
    parser.set_defaults(config=None)  # accept --config.eval.tokens=N and other fields


def run(args: argparse.Namespace) -> dict[str, Any]:
    if (args.after is None) == (args.out is None):
        raise UserError("give either --out with --steps, to train, or --after, to score a model that was fine-tuned")
    if (args.out is None) != (args.steps is None) or (args.out is None and args.replay is not None):
        raise UserError("--steps and --replay belong to --out: how long to train, and with how much of the general text")
    given = evaluation.settings(args, TRAINED if args.out else ())
    if taken := [key for key in given if key in ("data.path", "data.source", "train.init", "train.steps")]:
        raise UserError(f"--config.{taken[0]} is set by this command; give texts as --domain and --general, and --steps")
    if args.out:
        from jaxseq import forgetting

        more = {"steps": args.steps, "replay": args.replay or 0.0, "overrides": given}
        _stages.run(forgetting.tune, args.before, args.domain, args.general, args.out, **more)
    scoring = {key: value for key, value in given.items() if key.startswith(evaluation.SETTABLE)}
    return _scored(args, {"eval.tokens": TOKENS} | scoring)


def _scored(args: argparse.Namespace, overrides: dict[str, Any]) -> dict[str, Any]:
    """{text: {"before", "after", "change"}} in bits per byte."""
    found: dict[str, dict[str, float]] = {text: {} for text in TEXTS}
    for side, folder in (("before", args.before), ("after", args.after or args.out)):
        loaded = evaluation.load(folder)
        for text in TEXTS:
            print(f"scoring {text}, {side}", file=sys.stderr)
            data = {"data.path": getattr(args, text), "data.source": "sotu"}  # the default source: guessed from the path
            result, _ = evaluation.score(loaded, overrides | data)
            if "bits_per_byte" not in result:
                raise UserError(f"{folder} holds no language model of text, so it has no bits per byte")
            found[text][side] = result["bits_per_byte"]
    for text, row in found.items():
        row["change"] = row["after"] - row["before"]
        change = f"{abs(row['change']):.4f} {'worse' if row['change'] > 0 else 'better'}"
        print(f"{text:8} {row['before']:.4f} -> {row['after']:.4f} bits per byte, {change}", file=sys.stderr)
    return found
