"""List the architectures: the forms of their mixers, the bytes of their state, their parameters. --sources: published weights.

No model is run: sizes come from shapes alone. The rows are stored in the package or in the user's cache folder until the code
changes. --write=README.md rewrites the blocks between `<!-- generated: jaxseq list --markdown -->`, or
`<!-- generated: jaxseq list --sources --markdown -->`, and `<!-- end -->`, and the rows stored in the package.
"""

import argparse
import functools
import hashlib
import importlib.util
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn

import jaxseq
from jaxseq import forms, registry
from jaxseq.cli import _programs
from jaxseq.config import config, names
from jaxseq.errors import UserError
from jaxseq.layers import Mixer
from jaxseq.models import _stack, build

CONTEXTS = (128, 32768)  # tokens that the state has read
PLATFORMS = ("tpu", "gpu")  # platforms that may have a Pallas kernel
SHIPPED = Path(__file__).with_name("_list.json")
# The code that determines the rows.
CODE = (
    "blocks", "configs", "kernels", "mixers", "models", "ops", "call.py", "config.py", "config_files.py", "defaults.py",
    "forms.py", "layers.py", "overrides.py",
)  # fmt: skip
BEGIN, END = "<!-- generated: jaxseq list --markdown -->", "<!-- end -->"
BEGIN_SOURCES = "<!-- generated: jaxseq list --sources --markdown -->"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    parser.add_argument("--sources", action="store_true", help="list the formats of published weights instead")
    parser.add_argument("--write", metavar="FILE", help="put the Markdown tables into FILE's generated blocks")


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.sources and not args.write:
        return _show_sources(args)
    rows = table()
    if args.write:
        path = Path(args.write)
        text = rewrite(_read(path), markdown(rows), args.write)
        text = rewrite(text, markdown_sources(), args.write, BEGIN_SOURCES) if BEGIN_SOURCES in text else text
        path.write_text(text, encoding="utf-8")
        if os.access(SHIPPED.parent, os.W_OK):
            _keep(SHIPPED, rows)
        print(f"{path}: {len(rows)} architectures", file=sys.stderr)
    elif args.markdown:
        print(markdown(rows), file=sys.stderr if args.json else sys.stdout)
    elif not args.json:
        _print(rows)
    return {"contexts": list(CONTEXTS), "architectures": rows}


def table() -> list[dict]:
    """`describe` of every architecture, read from the stored rows if the code has not changed."""
    kept = _programs.cache_home() / "list.json"
    for path in (SHIPPED, kept):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["code"] == fingerprint():
                return found["rows"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # missing or damaged
    rows = [describe(name) for name in names()]
    if os.environ.get("JAXSEQ_CACHE") != "0":
        _keep(kept, rows)
    return rows


def _keep(path: Path, rows: list[dict]) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps({"code": fingerprint(), "rows": rows}, indent=1) + "\n", encoding="utf-8")
        draft.replace(path)
    except OSError:  # not stored; computed again next time
        draft.unlink(missing_ok=True)


@functools.cache
def fingerprint() -> str:
    """A hash of the code that determines the rows."""
    home, configs = Path(jaxseq.__file__).parent, Path(importlib.import_module("jaxseq.configs").__file__).parent
    digest = hashlib.blake2b(digest_size=16)
    for name in CODE:
        path = configs if name == "configs" else home / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{name}/{file.name} ".encode() + file.read_bytes())
    return digest.hexdigest()


@functools.cache
def describe(name: str) -> dict:
    """One architecture as plain data.

    Keys: name, title, stack, mixers {label: [op, …]}, forms {op: [form, …]}, state_bytes {tokens: bytes per row}, parameters,
    and sizes {published size: parameters}.
    """
    module = registry.load("configs", name)
    cfg = config(name)
    model = build(cfg)
    placed = zip(_stack.parse(cfg.model.stack), model.blocks, strict=True)
    mixers = {
        label: ops_of(mixer)
        for segment, block in placed
        for label, mixer in zip(segment.labels, block.mixers, strict=True)
    }
    return {
        "name": name,
        "title": registry.doc(module).splitlines()[0],
        "stack": cfg.model.stack,
        "mixers": mixers,
        "forms": {op: forms_of(op) for op in dict.fromkeys(op for ops in mixers.values() for op in ops)},
        "state_bytes": {str(context): state_bytes(model, context) for context in CONTEXTS},
        "parameters": parameters(model),
        "sizes": {size: parameters(build(config(f"{name}:{size}"))) for size in getattr(module, "SIZES", {})},
    }


def ops_of(mixer: Mixer) -> list[str]:
    """The ops that a mixer runs."""
    found: dict[str, None] = {}
    mixer.boxed(forms.plan("recurrent", seen=lambda op, *_: found.setdefault(op)))
    return list(found)


def forms_of(op: str) -> list[str]:
    """Names of the op's forms; its Pallas kernels by platform, as "pallas (tpu)"."""
    kernels = [p for p in PLATFORMS if importlib.util.find_spec(f"jaxseq.kernels.{op}_{p}")]
    return [*registry.load("ops", op).FORMS, *(f"pallas ({p})" for p in kernels)]


def state_bytes(model: nn.Module, context: int) -> int:
    """Bytes of one row's state after `context` tokens."""
    return _bytes(jax.eval_shape(lambda: model.init_state(1, context)))


def parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(math.prod(box.shape) for box in jax.tree.leaves(model.boxed()["params"]))


def _bytes(tree) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def human(number: float, unit: str = "") -> str:
    """Three digits and a prefix: 1.06 M, 65.7 kB."""
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {prefix}{unit}"
    return f"{number:g} {unit}".strip()


def _forms(row: dict, between: str) -> str:
    """The ops and their forms; ops with the same forms are grouped."""
    groups: dict[str, list[str]] = {}
    for op, known in row["forms"].items():
        groups.setdefault(", ".join(known), []).append(op)
    return between.join(f"{', '.join(ops)}: {known}" for known, ops in groups.items())


def _cells(row: dict, between: str = "; ") -> list[str]:
    return [
        row["name"],
        row["stack"],
        _forms(row, between),
        *(human(size, "B") for size in row["state_bytes"].values()),
        human(row["parameters"]),
        ", ".join(f"{size}: {human(count)}" for size, count in row["sizes"].items()) or "-",
    ]


STATES = [f"state at {n} tokens" for n in CONTEXTS]
HEADER = ["architecture", "stack", "ops: forms", *STATES, "parameters", "published sizes"]
RIGHT = range(3, 6)  # columns of numbers


def markdown(rows: list[dict]) -> str:
    """The table in GitHub's Markdown."""
    rules = ["---:" if i in RIGHT else "---" for i in range(len(HEADER))]
    lines = [HEADER, rules, *([cell.replace("|", "\\|") for cell in _cells(row)] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_sources() -> str:
    lines = [f"| `{name}` | {what} |" for name, what in sources().items()]
    return "\n".join(["| source | what it reads and writes |", "| --- | --- |", *lines])


def sources() -> dict[str, str]:
    """{source: the first paragraph of its file}"""
    from jaxseq import convert

    modules = {name: registry.load("convert.sources", name.replace("/", "_")) for name in convert.source_names()}
    return {name: " ".join(registry.doc(module).partition("\n\n")[0].split()) for name, module in modules.items()}


def _show_sources(args) -> dict:
    if args.markdown:
        print(markdown_sources(), file=sys.stderr if args.json else sys.stdout)
    elif not args.json:
        for name, what in sources().items():
            print(f"{name:26}{what}")
    return {"sources": sources()}


def rewrite(text: str, table: str, name: str, begin: str = BEGIN) -> str:
    """`text` with its generated block replaced. Raises UserError if it has none."""
    before, found, rest = text.partition(begin)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise UserError(f"{name} has no generated block; put the lines {begin} and {END} where the table belongs")
    return f"{before}{begin}\n{table}\n{END}{after}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give the path of a Markdown file") from None


def _print(rows: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*(HEADER[i] for i in (0, 2, *RIGHT)))
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        cells = _cells(row, "\n")
        table.add_row(*(cells[i] for i in (0, 2, *RIGHT)))
    console = Console()
    console.print(table)
    for row in rows:
        console.print(f"\n[bold]{row['name']}[/]  {row['title']}\n  stack: {row['stack']}", highlight=False, soft_wrap=True)
        console.print(f"  {HEADER[-1]}: {_cells(row)[-1]}", highlight=False, soft_wrap=True)
