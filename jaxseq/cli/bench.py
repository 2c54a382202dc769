"""Time the forms of every op, or (`jaxseq bench data`) the reading and tokenising of text.

Every op is timed forward and in training; its forms are compared with each other and with the machine's limits.

Times are medians in milliseconds; the forms run in turns. --write stores the form that trains fastest at each length on this
platform in jaxseq/ops/_auto.json, from which the form "auto" chooses.
"""

from jaxseq.errors import UserError

LENGTHS = "64,256,1024,4096"


def add_arguments(parser):
    parser.add_argument("what", nargs="?", default="ops", choices=["ops", "data"], help="default: ops")
    parser.add_argument("--mb", type=int, default=100, metavar="N", help="for data: megabytes of text (default: 100)")
    parser.add_argument("--tokenizer", default="byte", metavar="FILE", help="for data: as data.tokenizer (default: byte)")
    parser.add_argument("--ops", default="", metavar="A,B", help="only these ops (default: all)")
    parser.add_argument("--lengths", default=LENGTHS, metavar="T,T", help=f"tokens per row (default: {LENGTHS})")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each form, in turns (default: 5)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="default: float32")
    parser.add_argument("--write", action="store_true", help="write the choices to jaxseq/ops/_auto.json")


def run(args):
    if args.what == "data":
        return _data(args)
    lengths = _lengths(args.lengths)
    if args.rounds < 1:
        raise UserError(f"--rounds={args.rounds} measures nothing; set it to 1 or more")
    from rich.console import Console

    from jaxseq import bench

    console = Console(stderr=args.json)
    ops = [op for op in args.ops.split(",") if op]
    show = lambda records: console.print(table(records))  # noqa: E731
    result = bench.bench(ops, lengths, args.rounds, args.dtype, show, bench.write if args.write else None)
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


def _lengths(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdigit() and int(word) > 0 for word in words):
        raise UserError(f"--lengths={text} is not a list of lengths; write it like {LENGTHS}")
    return sorted({int(word) for word in words})


def table(records: list[dict]):
    """One op at one length as a rich table: milliseconds, and the ratios to the best form and to the machine's limit."""
    from rich.table import Table

    first = records[0]
    grid = Table(title=f"{first['op']}  {first['rows']} x {first['time']} tokens", title_justify="left")
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
