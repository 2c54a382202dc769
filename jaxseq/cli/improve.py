"""Measure in one table what each way of improving a model gains and costs.

A Transformer is trained, and then improved in every way that jaxseq knows: shared layers, fewer key heads, a window, pruning,
quantization, factored matrices, a distilled student, a change to linear attention, and adapters for a second text. Each row has
its bits per byte on held-out text, its size, speed and state, what it cost to make, and its difference from the model that it
was made from. The rows are written to DIR/results.json and DIR/report.html. If the command is interrupted, the same command
resumes and does not repeat finished work.

  jaxseq improve                                     14 rows, half an hour on 2 cores

  jaxseq improve --preset=full --model=runs/smollm2  more bases, 3 seeds, and a workdir of yours: hours

  jaxseq improve --rows=mamba,mamba+int8,mamba+channels:0.25+nf4

A row is BASE or BASE+LEVER. A base is the name of an architecture, `model` (that of --model) or `cut` (--layers of its layers,
taught by it). A lever is one of shared, multi-query, window, student, distilled, migrated and lora, another attention such as
latent or forgetting, or a recipe of `jaxseq compress`. Any --config.x.y=value applies to all rows.
"""

import argparse
import sys

from jaxseq.cli import _architectures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="quick", metavar="NAME", help="quick (default) or full")
    parser.add_argument("--rows", default="", metavar="A,B", help="rows to run (default: those of the preset)")
    parser.add_argument("--model", default="", metavar="FOLDER", help="a workdir, as of `jaxseq import`: the base called model")
    parser.add_argument("--layers", type=int, default=4, metavar="N", help="of the base called cut (default: 4)")
    parser.add_argument(
        "--second", default="", metavar="FILE", help="the second text, a file or folder (default: modules of Python)"
    )
    parser.add_argument("--out", default="runs/improve", metavar="FOLDER", help="default: runs/improve")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and text order (default: 0)")
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="train each row N times, with seeds SEED, SEED+1, … (default: the preset's)"
    )
    parser.add_argument("--markdown", action="store_true", help="also print the table in Markdown")
    parser.set_defaults(config=None)  # accept --config.train.steps=N and other fields


def run(args: argparse.Namespace) -> dict:
    from jaxseq.improve.rows import PRESETS  # imported late, so that --help is fast

    preset, common = _architectures.chosen(args, PRESETS)
    from jaxseq.cli._interrupt import stoppable
    from jaxseq.improve.table import improve

    console = common["console"]
    rows = [row for row in args.rows.split(",") if row]
    with stoppable(console):
        results = improve(
            preset, args.out, rows=rows, model=args.model, layers=args.layers, second=args.second, seed=args.seed,
            seeds=args.seeds, **common,
        )
    from jaxseq.compare.summary import show_table
    from jaxseq.improve import summary

    found = results["verdicts"]
    narrow = [{key: value for key, value in row.items() if key != "what"} for row in summary.rows(results, found)]
    show_table(narrow, [found["seeds"], found["busy"]], console)
    if args.markdown:
        print(summary.markdown(results), file=sys.stderr if args.json else sys.stdout)
    for words in found["missing"]:
        console.print(words, highlight=False, soft_wrap=True)
    console.print(f"\nreport: {args.out}/report.html", highlight=False, soft_wrap=True)
    if all(entry["status"].startswith("failed") for entry in results["architectures"].values()):
        raise SystemExit(1)
    return results
