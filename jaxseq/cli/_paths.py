"""Paths on the command line: expands ~ in every path argument, and accepts local paths only."""

import argparse
import re
from pathlib import Path

from jaxseq.errors import UserError

METAVARS = ("DIR", "FILE", "FILE.py", "OUT", "SRC")  # metavars of arguments that are paths
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


def local(path: str, flag: str) -> str:
    """`path` with ~ expanded. Raises UserError for a URL, which would otherwise create a folder named like `gs:`."""
    if scheme := _SCHEME.match(path):
        raise UserError(f"{flag}={path} is not a local path, and {scheme[1]}:// is not supported; copy or mount the files")
    return str(Path(path).expanduser()) if path.startswith("~") else path


def resolve(command: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Applies `local` to every path among the arguments of a command."""
    for action in command._actions:
        if action.metavar not in METAVARS or (value := getattr(args, action.dest, None)) is None:
            continue
        if action.metavar == "SRC" and str(value).startswith("hf://"):
            continue  # downloaded by `import`
        flag = action.option_strings[0] if action.option_strings else action.metavar
        setattr(args, action.dest, [local(v, flag) for v in value] if isinstance(value, list) else local(value, flag))
