"""Paths on the command line: ~ is the home folder wherever it stands, and only local folders can be read and written."""

import argparse
import re
from pathlib import Path

from jaxseq.errors import UserError

METAVARS = ("DIR", "FILE", "FILE.py", "OUT", "SRC")  # of the arguments that are paths
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


def local(path: str, flag: str) -> str:
    """`path` with ~ as the home folder. Raises UserError for a URL, of which a folder `gs:` would be made otherwise."""
    if scheme := _SCHEME.match(path):
        raise UserError(f"{flag}={path} is no local path, and {scheme[1]}:// is not read or written; copy it here, or mount it")
    return str(Path(path).expanduser()) if path.startswith("~") else path


def resolve(command: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """`local` for every path among the arguments of a command."""
    for action in command._actions:
        if action.metavar not in METAVARS or (value := getattr(args, action.dest, None)) is None:
            continue
        if action.metavar == "SRC" and str(value).startswith("hf://"):
            continue  # what `import` downloads
        flag = action.option_strings[0] if action.option_strings else action.metavar
        setattr(args, action.dest, [local(v, flag) for v in value] if isinstance(value, list) else local(value, flag))
