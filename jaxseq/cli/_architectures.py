"""What `jaxseq compare` and `jaxseq sweep` begin with: a preset, the architectures, and where their messages go."""

import argparse
import logging
import shlex
import sys
from typing import Any

from jaxseq.cli import _config
from jaxseq.errors import UserError

PLAIN_WIDTH = 120  # columns where standard error is no terminal


def begin(args: argparse.Namespace) -> tuple[Any, list[str], dict[str, Any]]:
    """(preset, names of the architectures, the arguments that both take: overrides, command, console).

    Raises UserError for a preset that there is not. Says it when a GPU or TPU is here and unused.
    """
    from jaxseq.compare.presets import PRESETS  # none of this is loaded for --help

    if args.preset not in PRESETS:
        raise UserError(f"there is no preset {args.preset!r}; choose one of: {', '.join(PRESETS)}")
    from rich.console import Console

    from jaxseq import accelerators

    accelerators.warn()
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax tells every file that it writes
    console = Console(stderr=True, width=None if sys.stderr.isatty() else PLAIN_WIDTH)
    names = [name for name in args.architectures.split(",") if name] + args.config
    command = shlex.join(["jaxseq", args.command, *sys.argv[2:]])
    return PRESETS[args.preset], names, {"overrides": _config.overrides(args), "command": command, "console": console}
