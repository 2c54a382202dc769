"""Turn published weights into a workdir for `generate`, `eval` and `train --config.train.init=DIR`.

  jaxseq import ~/SmolLM2-135M runs/smollm2      a folder with config.json and safetensors
  jaxseq import RWKV-x060-1B6.pth runs/rwkv6     one checkpoint file: .safetensors, .pth, .gguf
  jaxseq import hf://HuggingFaceTB/SmolLM2-135M@main runs/smollm2
                                                 from the hub (or HF_ENDPOINT), downloaded once; also hf://owner/name/FILE.gguf

Nothing in the files is executed. If there is a tokenizer beside the weights, it is copied, with its chat template and special
ids.
"""

import argparse
import sys
from typing import Any

from jaxseq import paths
from jaxseq.cli import _paths


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source_path", metavar="SRC", help="a folder, a checkpoint file, or hf://owner/name[@revision][/FILE]")
    parser.add_argument("workdir", metavar="DIR", help="the new workdir")
    parser.add_argument("--source", help="the format, such as hf/llama (default: detected from the files)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the parameters")
    parser.add_argument(
        "--tokenizer", metavar="FILE",
        help="a tokenizers JSON file, an RWKV vocabulary, or byte (default: the one beside the weights)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> dict[str, Any]:
    target = _paths.new_folder(args.workdir, "DIR")
    import jax

    from jaxseq import convert
    from jaxseq.convert import _tokenizer, hub
    from jaxseq.data import tokenizer_files
    from jaxseq.train import save_params

    path = hub.fetch(args.source_path) if args.source_path.startswith(hub.PREFIX) else args.source_path
    source, theirs, config, model, params = convert.open_model(path, args.source, args.dtype)
    read = config.model.get("vocab") is not None  # whether it reads token ids
    files = convert.tokenizer(path, source, theirs, args.tokenizer) if read else {}
    name = _tokenizer.check(files, config.model.vocab) if read else None
    if not paths.is_remote(target):
        paths.make_folder(target, str(target))
    for file, text in files.items():
        tokenizer_files.write(target / file, text)
    with config.unlocked():
        if read:
            built_in = "byte" if args.tokenizer in tokenizer_files.BYTES else args.tokenizer
            config.data.tokenizer = str(paths.absolute(target / name)) if name else built_in or tokenizer_files.UNKNOWN
    save_params(target, config, params)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    lm = config.model.kind == "lm"
    use = f"jaxseq generate --workdir={target} --prompt=TEXT" if lm else f"jaxseq train … --config.train.init={target}"
    print(f"{target}: {count:,} parameters from {source}; try: {use}", file=sys.stderr)
    if config.data.tokenizer == "unknown":
        why = _tokenizer.missing(path, theirs)
        print(
            f"{target} has no tokenizer ({why}); import again with --tokenizer=FILE (or byte), or name it "
            "when you generate, evaluate or train",
            file=sys.stderr,
        )
    given = {"workdir": str(target), "source": source, "parameters": count, "dtype": args.dtype}
    return given | {"tokenizer": config.data.tokenizer if read else None}
