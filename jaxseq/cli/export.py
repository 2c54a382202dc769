"""Write a workdir's weights as a folder that another library can read: config.json and safetensors.

  jaxseq export runs/transformer exported --source=hf/llama

  jaxseq export runs/lora adapter --adapter

Compressed weights and adapters (train.lora_rank) are merged into plain weights. The tokenizer, its chat template and the
generation settings of the workdir are copied too. --adapter writes the adapters alone, for PEFT and the base model.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from jaxseq.cli import _paths


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", metavar="DIR", help="a workdir with a checkpoint")
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    parser.add_argument("--source", help="the format, such as hf/llama (default: the only one that can hold the model)")
    parser.add_argument("--adapter", action="store_true", help="write only the adapters, in the layout of PEFT")
    parser.add_argument("--step", type=int, help="checkpoint to take (default: the latest)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    _paths.new_folder(args.out, "OUT")
    from jaxseq import convert, train
    from jaxseq.convert import _tokenizer

    model, params, config = train.load(args.workdir, args.step)
    source = (convert.save_adapter if args.adapter else convert.save_pretrained)(args.out, model, params, args.source)
    if not args.adapter and config.model.get("vocab") is not None and not _tokenizer.export(args.out, config, args.workdir):
        print(f"{args.out} has no tokenizer because {args.workdir} has none", file=sys.stderr)
    for file in Path(args.out).iterdir():
        file.chmod(0o644)
    print(f"{args.out}: written as {source}", file=sys.stderr)
    return {"out": args.out, "source": source}
