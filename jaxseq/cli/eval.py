"""Score held-out data with a trained model by its objective: for a language model bits per byte and perplexity, the state
carried over each whole document.

The data are those of the run unless --config.data.path=PATH (and its like) says otherwise. The whole split is scored unless
--config.eval.tokens=N says about how many tokens of it; --config.eval.carry_state=false scores each piece of a document
from an empty state.
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

    from jaxseq import registry
    from jaxseq.config import from_dict, to_dict
    from jaxseq.train import load_variables

    model, variables, config = load_variables(args.workdir, args.step, devices=jax.local_devices())
    config = from_dict(to_dict(config), **{"eval.tokens": 0} | overrides)
    task = registry.load("train.objectives", config.train.objective).task(config)
    mesh = jax.tree.leaves(variables)[0].sharding.mesh
    task.check(model)
    result = task.evaluate(model, variables, args.split, mesh=mesh)
    print(task.describe(result), file=sys.stderr)
    return result
