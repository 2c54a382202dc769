"""Write report.html again from a results.json of `compare` or `improve`, after an upgrade or from an interrupted run.

The verdicts are recomputed from the measurements. --markdown prints the table. --write=README.md writes no page; it puts the
table into the blocks between `<!-- generated: jaxseq report --results=FILE --markdown -->` and `<!-- end -->`. Each block names
its FILE, relative to the folder of README.md.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxseq import paths
from jaxseq.errors import UserError

SCHEMA = 1
BEGIN, END = "<!-- generated: jaxseq report --results={} --markdown -->", "<!-- end -->"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", metavar="DIR", help="the folder of a `jaxseq compare` or `improve`, or its results.json")
    parser.add_argument("--out", metavar="FILE", help="file to write the page to (default: report.html beside the results)")
    parser.add_argument("--markdown", action="store_true", help="also print the table of results in Markdown")
    parser.add_argument("--write", metavar="FILE", help="put the tables into FILE's generated blocks")


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.write:
        return rewrite(Path(args.write))
    if not args.results:
        raise UserError("jaxseq report needs --results=DIR, the folder of a `jaxseq compare`")
    path = paths.of(args.results)
    path = path / "results.json" if path.is_dir() else path
    out = Path(args.out) if args.out else path.with_name("report.html")
    results = read(path)
    report, summary = writers(results)
    page = report.render(results)
    if not (paths.is_remote(out) or out.parent.is_dir()):
        raise UserError(f"--out={out}: the folder {out.parent} does not exist; make it first")
    if out.is_dir():
        raise UserError(f"--out={out} is a folder; name a file, such as {out / 'report.html'}")
    paths.write(out, page)
    if args.markdown:
        print(summary.markdown(results), file=sys.stderr if args.json else sys.stdout)
    print(f"wrote {out}", file=sys.stderr)
    return {"report": str(out), "bytes": len(page.encode())}


def rewrite(path: Path) -> dict[str, Any]:
    """Fills the generated blocks of a Markdown file. Raises UserError if it has none."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give the path of a Markdown file") from None
    text, count = generated(text, path.parent)
    if not count:
        raise UserError(f"{path} has no generated block of results; put these lines in: {BEGIN.format('FILE')} and {END}")
    path.write_text(text, encoding="utf-8")
    print(f"{path}: {count} tables", file=sys.stderr)
    return {"file": str(path), "tables": count}


def generated(text: str, folder: Path) -> tuple[str, int]:
    """`text` with the table of every results block recomputed, and the number of blocks."""

    def block(found: re.Match) -> str:
        results = read(folder / found[2])
        return f"{found[1]}\n{writers(results)[1].markdown(results)}\n{END}"

    begin = re.escape(BEGIN).replace(re.escape("{}"), r"(\S+)")
    return re.subn(rf"({begin}).*?{re.escape(END)}", block, text, flags=re.S)


def writers(results: Mapping[str, Any]) -> tuple[ModuleType, ModuleType]:
    """The modules `report` and `summary` of the command that made the results. Imported late: matplotlib takes a second."""
    if results.get("kind") == "improve":
        from jaxseq.improve import report, summary
    else:
        from jaxseq.compare import report, summary
    return report, summary


def read(path: Path) -> dict[str, Any]:
    """The results in `path`. Raises UserError if the file was not written by `jaxseq compare`."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name the results.json that `jaxseq compare --out=DIR` wrote") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); run `jaxseq compare` again to write it") from None
    if not isinstance(results, dict) or not isinstance(results.get("architectures"), dict):
        raise UserError(f"{path} is not a results.json of `jaxseq compare`: it has no architectures")
    if results.get("schema") != SCHEMA:
        raise UserError(f"{path} has schema {results.get('schema')}, this version reads {SCHEMA}; run `jaxseq compare` again")
    return results
