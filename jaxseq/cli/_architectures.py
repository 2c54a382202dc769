"""Shared setup of `jaxseq compare`, `jaxseq sweep` and `jaxseq improve`: the preset, the architectures and the console."""

import argparse
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from jaxseq.cli import _config
from jaxseq.errors import UserError

PLAIN_WIDTH = 120  # columns if standard error is not a terminal


def begin(args: argparse.Namespace) -> tuple[Any, list[str], dict[str, Any]]:
    """(preset, names of the architectures, the common arguments: overrides, command, console).

    Raises UserError for an unknown preset. Warns if the machine has a GPU or TPU that JAX does not use.
    """
    from jaxseq.compare.presets import PRESETS  # imported late, so that --help is fast

    preset, common = chosen(args, PRESETS)
    return preset, [name for name in args.architectures.split(",") if name] + args.config, common


def chosen(args: argparse.Namespace, presets: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(the preset, the common arguments), see `begin`."""
    if args.preset not in presets:
        raise UserError(f"there is no preset {args.preset!r}; choose one of: {', '.join(presets)}")
    from rich.console import Console

    from jaxseq import accelerators

    accelerators.warn()
    console = Console(stderr=True, width=None if sys.stderr.isatty() else PLAIN_WIDTH)
    command = shlex.join(["jaxseq", args.command, *sys.argv[2:]])
    return presets[args.preset], {"overrides": _config.overrides(args), "command": command, "console": console}
