"""Time the forms of ops, whole models beside other libraries, or the reading of text.

  jaxseq bench ops --ops=retention --lengths=256,4096
  jaxseq bench train --peers --json
  jaxseq bench prefill --architectures=transformer,mamba2 --lengths=512,4096
  jaxseq bench decode --lengths=1024,8192,32768
  jaxseq bench data --mb=100

ops: every op forward and in training; its forms are compared with each other and with the machine's limits. --write stores the
form that is fastest at each length on this platform in jaxseq/ops/_auto.json, from which the form "auto" chooses. --peers: also
the attention of jax.nn (with cuDNN on GPUs in bfloat16) and of tokamax, if it is installed.

train, prefill, decode: whole models of --width with random weights. --peers runs the same weights in the libraries that are
installed (transformers with torch, llama-cpp-python), and prints ratios; ratios with a spread over rounds above 10 % are
inconclusive.

Compared runs are interleaved; times are medians in milliseconds.
"""

import argparse
from typing import TYPE_CHECKING, Any

from jaxseq.errors import UserError

if TYPE_CHECKING:  # rich takes a while to import
    from rich.table import Table

LENGTHS = {"ops": "64,256,1024,4096", "train": "512", "prefill": "512,2048,8192", "decode": "1024,8192,32768"}
MODELS = "transformer,gpt2,rwkv4,mamba2,retnet,mamba"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", default="ops", choices=[*LENGTHS, "data"], help="default: ops")
    parser.add_argument("--lengths", metavar="T,T", help="tokens per row, prompt or context (default: depends on what is timed)")
    parser.add_argument("--rounds", type=int, help="runs of each, in turns (default: 5 for ops, else 10)")
    parser.add_argument("--peers", action="store_true", help="time what installed libraries have of the same, too")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="default: float32")
    ops = parser.add_argument_group("ops")
    ops.add_argument("--ops", default="", metavar="A,B", help="only these ops (default: all)")
    ops.add_argument("--sizes", default="small,large", metavar="A,B", help="of laptop size, or published (default: small,large)")
    ops.add_argument("--write", action="store_true", help="write the choices to jaxseq/ops/_auto.json")
    models = parser.add_argument_group("train, prefill, decode")
    models.add_argument("--architectures", default=MODELS, metavar="A,B", help=f"the first is the reference (default: {MODELS})")
    models.add_argument("--width", type=int, default=256, help="of the models (default: 256)")
    models.add_argument("--rows", type=int, default=4, help="of a training batch (default: 4)")
    models.add_argument("--steps", type=int, default=64, help="tokens decoded in one call (default: 64)")
    models.add_argument("--markdown", action="store_true", help="print the tables in Markdown on standard output")
    models.add_argument("--plot", metavar="FILE", help="draw times against lengths, as .svg, .png or .pdf")
    data = parser.add_argument_group("data")
    data.add_argument("--mb", type=int, default=100, metavar="N", help="megabytes of text (default: 100)")
    data.add_argument("--tokenizer", default="byte", metavar="FILE", help="as data.tokenizer (default: byte)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.what == "data":
        return _data(args)
    for name in ("rounds", "width", "rows", "steps"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name}={value} measures nothing; set it to 1 or more")
    lengths = _lengths(args.lengths or LENGTHS[args.what], LENGTHS[args.what])
    return _ops(args, lengths) if args.what == "ops" else _models(args, lengths)


def _ops(args, lengths: list[int]):
    from rich.console import Console

    from jaxseq.bench import choices
    from jaxseq.bench import ops as bench

    console = Console(stderr=args.json)
    ops = [op for op in args.ops.split(",") if op]
    show = lambda records: console.print(table(records))  # noqa: E731
    sizes, written = args.sizes.split(","), choices.write if args.write else None
    result = bench.bench(ops, lengths, args.rounds or 5, args.dtype, show, written, sizes, args.peers)
    console.print(
        f"{result['device']}: {result['operations_per_second'] / 1e9:.3g} GFLOP/s in a matrix product, "
        f"{result['bytes_per_second'] / 1e9:.3g} GB/s in a copy; jax {result['jax']}, {result['dtype']}"
    )
    for op, purposes in result["choices"].items():
        for purpose, rows in purposes.items():
            forms = ", ".join(f"{form} up to T {length}" for length, form in rows)
            console.print(f"auto on {result['platform']}: {op}, {purpose}: {forms}")
    if args.write:
        console.print("written to jaxseq/ops/_auto.json")
    return result


def _models(args, lengths: list[int]):
    from pathlib import Path

    from rich.console import Console

    from jaxseq.bench import models, plot

    console = Console(stderr=args.json or args.markdown)
    if args.plot:
        plot.check(args.plot)
    shape = models.Shape(args.width, args.rows, tuple(lengths), args.steps, args.dtype)
    names = [name for name in args.architectures.split(",") if name]
    with console.status("") as status:
        progress = lambda fraction, note: status.update(note)  # noqa: E731
        show = lambda records: console.print(_title(args.what, records[0]), models_table(records))  # noqa: E731
        result = models.bench(args.what, names, shape, args.peers, args.rounds or 10, progress, show)
    versions = ", ".join([f"jax {result['versions']['jax']}", *result["versions"]["peers"]])
    console.print(f"{result['device']}; {result['dtype']}, width {result['width']}; {versions}; {result['date']}")
    for name, length in models.crossovers(result["records"]).items():
        if length and len(lengths) > 1 and name != names[0]:
            console.print(f"{name} is faster than {names[0]} from length {length:,} on")
    if args.markdown and not args.json:
        by_length = [[r for r in result["records"] if r["length"] == length] for length in lengths]
        print("\n\n".join(models_markdown(args.what, records) for records in by_length))
    if args.plot:
        plot.save(Path(args.plot), result)
        console.print(f"{args.plot}: written")
    return result


def models_table(records: list[dict]) -> "Table":
    """The records of one length as a rich table, which fits 80 columns."""
    from rich import box
    from rich.table import Table

    header, *rows = _model_cells(records)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in header:
        grid.add_column(name, justify="right" if name != "model" else "left", no_wrap=name == "model")
    for row in rows:
        grid.add_row(*row)
    grid.caption = _no_peers(records) or None
    return grid


def models_markdown(what: str, records: list[dict]) -> str:
    """The same in Markdown."""
    header, *rows = _model_cells(records)
    rule = ["---", *["---:"] * (len(header) - 1)]
    lines = [f"| {' | '.join(row)} |" for row in (header, rule, *rows)]
    return "\n".join([_title(what, records[0]), "", *lines, *(["", reasons] if (reasons := _no_peers(records)) else [])])


def _title(what: str, first: dict) -> str:
    per = {"train": f"a training step of {first.get('rows')} rows", "prefill": "reading a prompt", "decode": "decoding a token"}
    return f"{per[what]}, {first['length']:,} tokens (x first: relative to {first['architecture']})"


def _no_peers(records: list[dict]) -> str:
    return "; ".join(f"{r['architecture']}: {r['no_peer']}" for r in records if "no_peer" in r)


def _model_cells(records: list[dict]) -> list[list[str]]:
    """The header, and a row for each model."""
    peers = any("peer_ms" in r or "no_peer" in r for r in records)
    several = len({r["peer"] for r in records if "peer" in r}) > 1
    header = ["model", "size", "ours ms", "x floor", "x first", *(("peer ms", "ratio", "spread", "") if peers else ())]
    header += ["peer"] if several else []
    rows = []
    for record in records:
        cells = [record["architecture"]]
        if "failed" in record:
            cells.append(record["failed"])
        else:
            cells += [f"{record['parameters'] / 1e6:.1f}M", f"{record['ours_ms']:.4g}"]
            cells += [f"{record['of_floor']:.1f}", f"{record['of_reference']:.2f}"]
        if "ratio" in record:
            cells += [f"{record['peer_ms']:.4g}", f"{record['ratio']:.2f}", f"{record['spread']:.0%}"]
            cells += [record["verdict"] or "no rank", *([record["peer"].split()[0]] if several else [])]
        rows.append(cells + [""] * (len(header) - len(cells)))
    return [header, *rows]


def _data(args):
    if args.mb < 1:
        raise UserError(f"--mb={args.mb} measures nothing; set it to 1 or more")
    from rich.console import Console
    from rich.table import Table

    from jaxseq.data import benchmark

    records = benchmark.bench(args.mb, args.tokenizer)
    grid = Table(title=f"{args.mb} MB of text to {args.tokenizer} tokens on disk", title_justify="left")
    for name in ("kind", "MB/s of text", "peak memory MB", "MB on disk"):
        grid.add_column(name, justify="left" if name == "kind" else "right")
    for record in records:
        rate, peak, disk = record["bytes_per_second"] / 1e6, record["peak_bytes"] / 1e6, record["disk_bytes"] / 1e6
        grid.add_row(record["kind"], f"{rate:.1f}", f"{peak:.0f}", f"{disk:.1f}")
    Console(stderr=args.json).print(grid)
    return {"tokenizer": args.tokenizer, "megabytes": args.mb, "data": records}


def _lengths(text: str, usual: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdigit() and int(word) > 0 for word in words):
        raise UserError(f"--lengths={text} is not a list of lengths; write it like {usual}")
    return sorted({int(word) for word in words})


def table(records: list[dict]) -> "Table":
    """One op at one length as a rich table: milliseconds, and the ratios to the best form and to the machine's limit."""
    from rich.table import Table

    first = records[0]
    grid = Table(title=f"{first['op']}, {first['size']}  {first['rows']} x {first['time']} tokens", title_justify="left")
    grid.add_column("form", no_wrap=True)
    for name in ("forward ms", "x best", "x floor", "training ms", "x best", "x floor", "memory MB"):
        grid.add_column(name, justify="right")
    for record in records:
        memory = f"{record['temporary_bytes'] / 1e6:.1f}" if "temporary_bytes" in record else ""
        if "skipped" in record:
            cells = [record["skipped"], *[""] * 5]
        else:
            cells = [cell for kind in ("forward", "training") for cell in _cells(record, records, kind)]
        grid.add_row(record["form"], *cells, memory)
    return grid


def _cells(record: dict, records: list[dict], kind: str) -> list[str]:
    best = min(r[kind] for r in records if kind in r)
    return [f"{record[kind]:.2f}", f"{record[kind] / best:.2f}", f"{record[kind] / record[f'floor_{kind}']:.1f}"]
