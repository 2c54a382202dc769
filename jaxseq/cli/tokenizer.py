"""Train a byte-level BPE tokenizer on a corpus, for `--config.data.tokenizer=FILE`."""

import argparse

from rich.console import Console

from jaxseq import data
from jaxseq.cli import _config
from jaxseq.data import bpe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _config.add_config(parser, default="transformer")
    parser.add_argument(
        "--vocab", type=int, required=True, metavar="N", help="total number of ids: 256 bytes, the end of text, and merges"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the tokenizers JSON file to write")


def run(args: argparse.Namespace) -> dict:
    """Trains on the training documents of config.data only; the validation documents are not read."""
    config = _config.load(args)
    size = bpe.train((document.text for document in data.texts(config.data)), args.vocab, args.out)
    tokenizer = data.JsonTokenizer(args.out)
    sample = next(iter(data.texts(config.data))).text[:100_000]
    figures = {
        "tokenizer": str(args.out),
        "vocab": size,
        "boundary": tokenizer.boundary,
        "bytes_per_token": round(len(sample.encode()) / max(1, len(tokenizer.encode(sample))), 3),
    }
    console = Console(stderr=True)
    console.print(f"{args.out}: {size} ids, {figures['bytes_per_token']} bytes per token on the first document")
    if size < args.vocab:
        console.print(f"The corpus has no more pairs to merge, so --vocab={args.vocab} was not reached.")
    console.print(f"Use it with --config.data.tokenizer={args.out}", soft_wrap=True)
    return figures
