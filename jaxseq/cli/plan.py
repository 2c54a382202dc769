"""Compile training and decoding steps for TPUs and GPUs that are not here, and tell what they need.

  jaxseq plan --config=retnet:1.3b --topology=v5e:4x4 \\
    --config.train.batch=64 --config.mesh.fsdp=16

  jaxseq plan --architectures=all --parameters=100e6 --out=plan.jsonl

Nothing is run: this machine needs no TPU, only its compiler (pip install libtpu), or for --topology=h100:8 that of GPUs
(pip install 'jax[cuda13]' absl-py). Told are, for each chip, the memory that the compiler plans, operations, memory traffic and
collectives with the trips of loops, and a lower bound of the time from the chips' published rates. --what=decode is one token of
each row at --context tokens.

--architectures takes names or all, fitted to --parameters, in bfloat16, and stores each record in --out, so that an interrupted
command goes on if it is run again. Weights are sharded over all chips (fsdp) unless --config.mesh says otherwise.
"""

import argparse
import json
from typing import TYPE_CHECKING, Any

from jaxseq.cli import _config
from jaxseq.errors import UserError

if TYPE_CHECKING:  # rich takes a while to import
    from rich.table import Table

DEFAULTS = {"model.dtype": "bfloat16", "train.batch": 64, "train.length": 2048, "train.form": "chunkwise"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    said = "chips, such as v5p:2x2x2 or h100:8 (default: v5e:2x4)"
    parser.add_argument("--topology", default="v5e:2x4", metavar="KIND:AxB", help=said)
    parser.add_argument("--what", default="train,decode", metavar="A,B", help="train, decode or both (default: both)")
    parser.add_argument("--context", type=int, default=8192, metavar="N", help="tokens before the decoded one (default: 8192)")
    parser.add_argument("--architectures", metavar="A,B", help="several architectures, or all, in place of --config")
    parser.add_argument("--parameters", type=float, default=100e6, metavar="N", help="of each of them (default: 100e6)")
    parser.add_argument("--out", metavar="FILE", help="append records to this file, and skip those that it has")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown on standard output")
    _config.add_config(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from jaxseq.bench import ahead

    what = args.what.split(",")
    if wrong := [word for word in what if word not in ahead.WHAT]:
        raise UserError(f"--what={wrong[0]} is neither train nor decode; choose one or both")
    if args.context < 1 or not 1e3 <= args.parameters <= 1e15:
        raise UserError("--context must be positive, and --parameters between a thousand and 1e15")
    if bool(args.config) == bool(args.architectures):
        raise UserError("give either --config=NAME, one model, or --architectures=A,B, several of one size")
    chips = len(ahead.devices(args.topology))  # before anything is made
    from rich.console import Console

    console = Console(stderr=True)
    records, known = [], _read(args.out)
    for name, make in _subjects(args, chips):
        for kind in what:
            key = [name, kind, args.topology, args.context, _config.overrides(args)]
            if (found := known.get(json.dumps(key))) is None:
                with console.status(f"compiling {name}, {kind}"):
                    found = _attempt(ahead, name, make, kind, args)
                _append(args.out, key, found)
            records.append(found)
            if not args.json:
                console.print(_line(found), highlight=False, soft_wrap=True)
    if args.markdown and not args.json:
        print(markdown(records))
    elif not args.json:
        Console().print(table(records))
    return {"records": records}


def _subjects(args: argparse.Namespace, chips: int) -> list[tuple[str, Any]]:
    """(name, a function that makes the config) of each model."""
    from jaxseq import names
    from jaxseq.compare import fit
    from jaxseq.config import config

    overrides, mesh = _config.overrides(args), {"mesh.data": 1, "mesh.fsdp": chips}
    defaults = DEFAULTS | ({} if any(field.startswith("mesh.") for field in overrides) else mesh)
    if args.config:
        return [(args.config, lambda: _config.load(args, defaults))]
    chosen = names() if args.architectures == "all" else args.architectures.split(",")
    if unknown := [name for name in chosen if name not in names()]:
        raise UserError(f"there is no architecture {unknown[0]!r}; choose from: {', '.join(names())}")
    return [(name, lambda name=name: fit.fit(config(name, **defaults | overrides), int(args.parameters))) for name in chosen]


def _attempt(ahead: Any, name: str, make: Any, kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """A record, or one that says why there is none: a model that does not fit must not end a long table."""
    import jax

    try:
        return ahead.record(name, make(), kind, args.topology, args.context)
    except (UserError, jax.errors.JaxRuntimeError) as error:
        if args.config and isinstance(error, UserError):
            raise
        return {"config": name, "what": kind, "topology": args.topology, "error": str(error).splitlines()[0][:200]}


def _read(path: str | None) -> dict[str, Any]:
    from pathlib import Path

    if path is None or not Path(path).exists():
        return {}
    try:
        rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        return {json.dumps(row["key"]): row["record"] for row in rows}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"--out={path} holds something else than records of this command; choose another file") from None


def _append(path: str | None, key: list, record: dict[str, Any]) -> None:
    if path is not None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "record": record}) + "\n")


def _line(record: dict[str, Any]) -> str:
    if "error" in record:
        return f"{record['config']}, {record['what']}: {record['error']}"
    unknown = f"; {record['unknown_loops']} loops of unknown length are counted once" if record["unknown_loops"] else ""
    used, whole = record["memory_bytes"] / 2**30, record["capacity_bytes"] / 2**30
    return (
        f"{record['config']}, {record['what']}: {used:.2f} of {whole:.0f} GiB a chip, at least "
        f"{1e3 * record['step_seconds']:.3g} ms ({record['bound']}), compiled in {record['compile_seconds']:.0f} s{unknown}"
    )


HEADER = ("", "", "GiB", "GFLOP", "GB", "sent MB", "calls", "ms", "bound", "products")


def _cells(record: dict[str, Any]) -> tuple[str, ...]:
    name, what = record["config"], record["what"]
    if "error" in record:
        return name, what, *["–"] * (len(HEADER) - 2)
    calls = sum(number for number, _ in record["collectives"].values())
    return (
        name, what, f"{record['memory_bytes'] / 2**30:.2f}", f"{record['operations'] / 1e9:.4g}", f"{record['bytes'] / 1e9:.3g}",
        f"{record['sent_bytes'] / 1e6:.3g}", f"{calls:.0f}", f"{1e3 * record['step_seconds']:.3g}", record["bound"],
        f"{record['share_of_products']:.0%}",
    )  # fmt: skip


def table(records: list[dict[str, Any]]) -> "Table":
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    shown = [i for i, name in enumerate(HEADER) if name not in ("sent MB", "GFLOP")]  # as many as fit 80 columns
    for i in shown:
        grid.add_column(HEADER[i], justify="left" if i < 2 else "right", no_wrap=True)
    for record in records:
        cells = _cells(record)
        grid.add_row(*(cells[i] for i in shown))
    return grid


def markdown(records: list[dict[str, Any]]) -> str:
    rows = [HEADER, ["---"] * 2 + ["---:"] * (len(HEADER) - 2), *map(_cells, records)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
