"""Score held-out documents with a trained model: bits per byte and perplexity, the state carried over each whole document.

The data are those of the run unless --config.data.path=PATH (and its like) says otherwise; --config.eval.carry_state=false
scores each piece of a document from an empty state.
"""

import sys

from jaxseq.cli import _config
from jaxseq.errors import UserError

SETTABLE = ("data.", "eval.", "train.form")


def add_arguments(parser):
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of a training run")
    parser.add_argument("--step", type=int, help="checkpoint to take (default: the latest)")
    parser.add_argument("--split", default="validation", choices=("train", "validation"), help="default: validation")
    parser.set_defaults(config=None)  # lets --config.data.path=PATH and its like through


def run(args):
    overrides = _config.overrides(args)
    if fixed := [key for key in overrides if not key.startswith(SETTABLE)]:
        raise UserError(f"--config.{fixed[0]} was settled by the run; jaxseq eval takes --config.data.… and --config.eval.…")
    import jax

    from jaxseq import data
    from jaxseq.config import from_dict, to_dict
    from jaxseq.evaluation import evaluate
    from jaxseq.train import load
    from jaxseq.train.loop import with_vocab

    model, params, config = load(args.workdir, args.step, devices=jax.local_devices())
    config = from_dict(to_dict(config), **overrides)
    tokenizer = data.tokenizer(config.data)
    config = with_vocab(config, tokenizer)
    corpus = data.corpus(config.data, tokenizer)
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    result = evaluate(model, params, config, corpus, args.split, mesh=mesh)
    print(
        f"{result['bits_per_byte']:.4f} bits/byte, perplexity {result['perplexity']:.3f} a token, over "
        f"{len(result['documents'])} documents, {result['bytes']:,} bytes",
        file=sys.stderr,
    )
    return result
