"""Turn published weights into a workdir that `generate`, `eval` and `train --config.train.init=DIR` open.

  jaxseq import ~/SmolLM2-135M runs/smollm2      a folder with config.json and safetensors
  jaxseq import RWKV-x060-1B6.pth runs/rwkv6     one checkpoint file: .safetensors, .pth, .gguf
  jaxseq import hf://HuggingFaceTB/SmolLM2-135M@main runs/smollm2
                                                 from the hub (or HF_ENDPOINT), downloaded once; also hf://owner/name/FILE.gguf

Nothing in the files is executed. A tokenizer.json beside the weights is taken along.
"""

import sys
from pathlib import Path

from jaxseq.errors import UserError


def add_arguments(parser):
    parser.add_argument("source_path", metavar="SRC", help="a folder, a checkpoint file, or hf://owner/name[@revision][/FILE]")
    parser.add_argument("workdir", metavar="DIR", help="the new workdir")
    parser.add_argument("--source", help="whose names they have, such as hf/llama (default: found)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the parameters")
    parser.add_argument("--tokenizer", help="a tokenizers JSON file or a vocabulary (default: tokenizer.json beside the weights)")


def run(args):
    target = Path(args.workdir)
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target} is not empty; choose another DIR, or remove it")
    import jax

    from jaxseq import convert
    from jaxseq.convert import hub
    from jaxseq.train import checkpoints

    path = hub.fetch(args.source_path) if args.source_path.startswith(hub.PREFIX) else args.source_path
    source, theirs, config, model, params = convert.open_model(path, args.source, args.dtype)
    tokenizer = convert.tokenizer(path, source, theirs, args.tokenizer)
    target.mkdir(parents=True, exist_ok=True)
    with config.unlocked():
        if tokenizer:
            name, text = tokenizer
            (target / name).write_text(text)
            config.data.tokenizer = str((target / name).absolute())
    checkpoints.save_params(target, config, params)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    lm = config.model.kind == "lm"
    use = f"jaxseq generate --workdir={target} --prompt=TEXT" if lm else f"jaxseq train … --config.train.init={target}"
    print(f"{target}: {count:,} parameters from {source}; try: {use}", file=sys.stderr)
    return {"workdir": str(target), "source": source, "parameters": count, "dtype": args.dtype}
