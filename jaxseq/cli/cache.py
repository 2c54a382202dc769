"""List the contents of jaxseq's caches, and clear them.

The token cache holds tokenised corpora (data.cache, by default ~/.cache/jaxseq); data.cache_gb bounds its size. The program
cache holds compiled programs (JAXSEQ_CACHE=0 switches it off, JAX_COMPILATION_CACHE_DIR moves it). --clear removes the listed
entries; jaxseq makes them again when it needs them.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jaxseq.errors import UserError


class Cache(NamedTuple):
    """where(folder): its path; `folder` is --folder or None. entries(path): [{"name", "bytes", "used" (seconds since 1970),
    …}], the least recently used first. clear(path): removes them."""

    where: Callable
    entries: Callable
    clear: Callable


def _tokens() -> Cache:
    from jaxseq.data import cache

    def entries(path) -> list[dict]:
        return [
            {"name": entry.source or entry.path.name, "tokenizer": entry.tokenizer, "tokens": entry.tokens, "bytes": entry.size,
             "used": entry.used}
            for entry in cache.entries(path)
        ]  # fmt: skip

    return Cache(cache.root, entries, lambda path: cache.shrink(path, 0))


def _programs() -> Cache:
    from jaxseq.cli import _programs as programs

    def entries(path) -> list[dict]:
        files = [file.stat() for file in programs.files(path)]
        used = max((file.st_mtime for file in files), default=0)
        return [{"name": f"{len(files)} files", "bytes": sum(file.st_size for file in files), "used": used}] if files else []

    def clear(path) -> None:
        for file in programs.files(path):
            file.unlink(missing_ok=True)

    return Cache(lambda given: Path(given).expanduser() if given else programs.location(), entries, clear)


CACHES = {"tokens": _tokens, "programs": _programs}  # name: function that opens it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help=f"only this one of {', '.join(CACHES)} (default: all)")
    parser.add_argument("--folder", metavar="FOLDER", help="folder of the cache, if it is not the default one")
    parser.add_argument("--clear", action="store_true", help="remove the listed entries")


def run(args: argparse.Namespace) -> dict:
    from rich.console import Console
    from rich.table import Table

    if args.name and args.name not in CACHES:
        raise UserError(f"there is no cache {args.name!r}; choose one of {', '.join(CACHES)}")
    if args.folder and not args.name and len(CACHES) > 1:
        raise UserError(f"--folder={args.folder} is the folder of one cache; name it: {' or '.join(CACHES)}")
    console, found = Console(stderr=args.json), {}
    for name in [args.name] if args.name else CACHES:
        cache = CACHES[name]()
        path = cache.where(args.folder)
        entries = cache.entries(path)
        if args.clear:
            cache.clear(path)
        total = sum(entry["bytes"] for entry in entries)
        console.print(f"{name}: {total / 1e6:.1f} MB in {path}{', now removed' * args.clear}", soft_wrap=True, highlight=False)
        grid = Table()
        for column in ("name", "MB", "last used"):
            grid.add_column(column, justify="right" if column == "MB" else "left", overflow="fold")
        for entry in entries:
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry["used"]))
            grid.add_row(entry["name"], f"{entry['bytes'] / 1e6:.1f}", used)
        if entries:
            console.print(grid)
        found[name] = {"folder": str(path), "bytes": total, "entries": entries, "cleared": args.clear}
    return found
