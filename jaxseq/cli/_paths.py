"""Paths on the command line: expands ~ in every path argument. Runs may be in buckets (gs://), other files are local."""

import argparse
from pathlib import Path
from typing import Any

from jaxseq import paths
from jaxseq.errors import UserError

RUNS = ("DIR",)  # metavars of the arguments that may be gs://
LOCAL = ("FILE", "FILE.py", "FOLDER", "OUT", "SRC")  # and of those that must be local
# Fields of a config that name a run, or what may lie beside or in one.
RUN_FIELDS = ("train.init", "train.distill_teacher", "train.distill_cache", "data.tokenizer")


def resolved(path: str, flag: str, remote: bool) -> str:
    """`path` with ~ expanded. Raises UserError for a URL, unless it is gs:// and `remote`."""
    if remote and paths.is_remote(path):
        return path
    path = paths.local(path, f"{flag}={path}")
    return str(Path(path).expanduser()) if path.startswith("~") else path


def new_folder(name: str, argument: str) -> Any:
    """The path of a folder to write. Raises UserError unless it is empty or missing, and can be written."""
    path = paths.of(name)
    if not paths.is_remote(path):
        paths.check_folder(path, name)
    if path.exists() and any(path.iterdir()):
        raise UserError(f"{name} is not empty; choose another {argument}, or remove it")
    return path


def resolve(command: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Applies `resolved` to every path among the arguments of a command."""
    for action in command._actions:
        if action.metavar not in RUNS + LOCAL or (value := getattr(args, action.dest, None)) is None:
            continue
        if action.metavar == "SRC" and str(value).startswith("hf://"):
            continue  # downloaded by `import`
        flag, remote = action.option_strings[0] if action.option_strings else action.metavar, action.metavar in RUNS
        found = [resolved(v, flag, remote) for v in (value if isinstance(value, list) else [value])]
        setattr(args, action.dest, found if isinstance(value, list) else found[0])
