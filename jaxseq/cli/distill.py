"""The former name of `jaxseq modal`, which takes the same arguments."""

import sys

from jaxseq.cli import modal

add_arguments = modal.add_arguments


def run(args):
    print("jaxseq: `jaxseq distill` is now called `jaxseq modal`; please use that name", file=sys.stderr)
    return modal.run(args)
