"""Write the four files of a new architecture: op, mixer, config, and a plain loop as the reference for the tests.

The files are complete and pass the tests: they implement a decaying sum. Change them, and run `pytest -k NAME` again.

  jaxseq new decay
"""

import argparse
import importlib
import keyword
import re
import string
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import jaxseq
from jaxseq import registry
from jaxseq.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="lower-case letters, digits and _, as in short_conv")


def run(args: argparse.Namespace) -> dict[str, Any]:
    name = args.name
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UserError(f"{name!r} is not a valid architecture name; use lower-case letters, digits and _, like short_conv")
    taken = [package for package in ("ops", "mixers", "configs") if name in registry.names(package)]
    if taken:
        raise UserError(f"{name} is taken: there is one in {' and '.join(taken)}; choose another name")
    package = Path(jaxseq.__file__).parent
    folders = {
        "op": package / "ops",
        "mixer": package / "mixers",
        "config": Path(importlib.import_module("jaxseq.configs").__path__[0]),
        "oracle": package.parent / "tests" / "oracles",
    }
    if not folders["oracle"].is_dir():
        raise UserError(f"{package.parent} is not a checkout of jaxseq; clone it, and install it with: pip install -e '.[test]'")
    paths = {kind: folder / f"{name}.py" for kind, folder in folders.items()}
    if there := [str(path) for path in paths.values() if path.exists()]:
        raise UserError(f"{', '.join(there)} exists already; move it away, or choose another name")
    for kind, path in paths.items():
        path.write_text(text(kind, name), encoding="utf-8")
        print(path, file=sys.stderr)
    print(f"next: pytest -k {name}; jaxseq list; jaxseq compare --architectures=transformer,{name}", file=sys.stderr)
    return {"files": [str(path) for path in paths.values()]}


def text(kind: str, name: str) -> str:
    """The contents of one of the files (kind: op, mixer, config or oracle) for a new architecture."""
    template = resources.files("jaxseq.cli").joinpath("_new", f"{kind}.txt").read_text(encoding="utf-8")
    return string.Template(template).substitute(name=name, Name="".join(part.capitalize() for part in name.split("_")))
