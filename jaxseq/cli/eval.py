"""Score a trained model on held-out data by its objective; a language model gets bits per byte and perplexity.

The data are those of the run unless --config.data.path=PATH or another --config.data field is given. The whole split is scored;
--config.eval.tokens=N limits it to about N tokens. The state is carried over each whole document;
--config.eval.carry_state=false scores each segment of a document from an empty state.
"""

import argparse
import sys
from typing import Any

from jaxseq.cli import _config
from jaxseq.errors import UserError

SETTABLE = ("data.", "eval.", "train.form")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of a training run")
    parser.add_argument("--step", type=int, help="checkpoint to take (default: the latest)")
    parser.add_argument("--split", default="validation", choices=("train", "validation"), help="default: validation")
    parser.set_defaults(config=None)  # accept --config.data.path=PATH and other fields


def run(args: argparse.Namespace) -> dict[str, Any]:
    overrides = settings(args)  # before anything is loaded
    result, line = score(load(args.workdir, args.step), overrides, args.split)
    print(line, file=sys.stderr)
    return result


def settings(args: argparse.Namespace, more: tuple[str, ...] = ()) -> dict[str, Any]:
    """The given fields of the config. Raises UserError for one that the run has fixed. more: beginnings of other free fields."""
    overrides = _config.overrides(args)
    if fixed := [key for key in overrides if not key.startswith(SETTABLE + more)]:
        raise UserError(
            f"--config.{fixed[0]} was fixed by the run; jaxseq {args.command} takes only --config.data.… and --config.eval.…"
        )
    return overrides


def load(workdir: str, step: int | None = None) -> tuple[Any, dict[str, Any], Any]:
    """(model, variables, config) of a checkpoint, on all local devices."""
    import jax

    from jaxseq.train import load_variables

    return load_variables(workdir, step, devices=jax.local_devices())


def score(
    loaded: tuple[Any, dict[str, Any], Any], overrides: dict[str, Any], split: str = "validation"
) -> tuple[dict[str, Any], str]:
    """(figures of a loaded model on a split, the figures as a line of text)."""
    import jax

    from jaxseq import registry
    from jaxseq.config import from_dict, to_dict

    model, variables, config = loaded
    config = from_dict(to_dict(config), **{"eval.tokens": 0} | overrides)
    task = registry.load("train.objectives", config.train.objective).task(config)
    mesh = jax.tree.leaves(variables)[0].sharding.mesh
    task.check(model)
    result = task.evaluate(model, variables, split, mesh=mesh)
    return result, task.describe(result)
