"""Measure what fine-tuning has learned and what it has forgotten.

  jaxseq forgetting --before=runs/base --after=runs/law \\
    --domain=law.txt --general=web.txt

Scores the models before and after fine-tuning on the held-out parts of two texts, that of the domain and a general one, in bits
per byte.

A remedy against forgetting is replay: train on both texts, with a small weight for the general one, by
--config.data.source=mixture --config.data.path=mix.json with a file mix.json like this.

  {"law": {"path": "law.txt"}, "web": {"path": "web.txt", "weight": 0.1}}
"""

import argparse
import sys
from typing import Any

from jaxseq.cli import eval as evaluation
from jaxseq.errors import UserError

TEXTS = ("domain", "general")
TOKENS = 1_000_000  # that are scored of each text, unless --config.eval.tokens says otherwise


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--before", required=True, metavar="DIR", help="workdir that fine-tuning started from")
    parser.add_argument("--after", required=True, metavar="DIR", help="workdir of the fine-tuned model")
    parser.add_argument("--domain", required=True, metavar="FILE", help="the text it was tuned on, a file or folder")
    parser.add_argument("--general", required=True, metavar="FILE", help="other text, which it should still know")
    parser.set_defaults(config=None)  # accept --config.eval.tokens=N and other fields


def run(args: argparse.Namespace) -> dict[str, Any]:
    overrides = {"eval.tokens": TOKENS} | evaluation.settings(args)
    if taken := [key for key in overrides if key in ("data.path", "data.source")]:
        raise UserError(f"--config.{taken[0]} would replace both texts; give them as --domain and --general")
    found: dict[str, dict[str, float]] = {text: {} for text in TEXTS}
    for side in ("before", "after"):
        loaded = evaluation.load(getattr(args, side))
        for text in TEXTS:
            print(f"scoring {text}, {side}", file=sys.stderr)
            data = {"data.path": getattr(args, text), "data.source": "sotu"}  # the default source: guessed from the path
            result, _ = evaluation.score(loaded, overrides | data)
            if "bits_per_byte" not in result:
                raise UserError(f"--{side}={getattr(args, side)} is no language model of text, so it has no bits per byte")
            found[text][side] = result["bits_per_byte"]
    for text, row in found.items():
        row["change"] = row["after"] - row["before"]
        change = f"{abs(row['change']):.4f} {'worse' if row['change'] > 0 else 'better'}"
        print(f"{text:8} {row['before']:.4f} -> {row['after']:.4f} bits per byte, {change}", file=sys.stderr)
    return found
