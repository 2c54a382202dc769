"""The former name of `jaxseq modal`, which takes the same arguments."""

import argparse
import sys
from typing import Any

from jaxseq.cli import modal

add_arguments = modal.add_arguments


def run(args: argparse.Namespace) -> dict[str, Any]:
    print("jaxseq: `jaxseq distill` is now called `jaxseq modal`; please use that name", file=sys.stderr)
    return modal.run(args)
