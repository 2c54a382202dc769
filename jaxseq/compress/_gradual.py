"""Pruning in rounds, with training between them."""

import os
from collections.abc import Callable
from typing import Any

from jaxseq import paths, recipes, staged
from jaxseq.compress._run import NAME, apply, compared, log
from jaxseq.config import from_dict, to_dict
from jaxseq.errors import UserError
from jaxseq.train import train
from jaxseq.train.checkpoints import steps as saved_steps
from jaxseq.train.workdirs import saved_config

PRUNING = ("magnitude", "wanda", "sparsegpt")


def shares(last: float, rounds: int) -> list[float]:
    """The share of zeros after each round k of n: s (1 - (1 - k/n)^3) (Zhu & Gupta 2017, arXiv:1710.01878, eq. 1)."""
    return [float(f"{last * (1 - (1 - k / rounds) ** 3):.6g}") for k in range(1, rounds + 1)]


def gradual(
    workdir: str | os.PathLike, recipe: str, out: str | os.PathLike, *, rounds: int, steps: int, tokens: int = 8192,
    overrides: dict[str, Any] | None = None, say: Callable[[str], None] = log.info,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Prunes in `rounds` rounds, each followed by its part of `steps` steps of training; see `compress` for the rest.

    The last step of the recipe must prune a share, such as wanda:0.5; `shares` are the shares of the rounds. Steps before it are
    applied in the first round. overrides: config fields data.…, eval.…, train.… and mesh.…. The learning rate is constant, except
    in the last round, which has the run's schedule. Each round begins with new moments of the optimiser.

    Rounds are in `out`/rounds, the last one in `out`. An interrupted call goes on if it is made again.
    """
    recipes.steps("compress", recipe)
    first, _, last = recipe.rpartition("+")
    name, _, argument = last.strip().partition(":")
    if name not in PRUNING or ":" in argument:
        raise UserError(f"--rounds needs a recipe whose last step prunes a share, such as wanda:0.5, not {last.strip()!r}")
    if not 1 <= rounds <= steps:
        raise UserError(f"{steps} steps cannot be divided among {rounds} rounds; give each at least one")
    out = paths.of(out)
    asked = {"workdir": str(paths.absolute(paths.of(workdir))), "recipe": recipe, "rounds": rounds, "steps": steps}
    asked |= {"tokens": tokens, "config": overrides or {}}
    staged.check(out, NAME, asked)
    todo = shares(float(argument), rounds)
    staged.begin(out, NAME, asked)
    source = asked["workdir"]
    for number, share in enumerate(todo, 1):
        pruned = out / "rounds" / str(number)
        if not saved_steps(pruned):
            words = [*([first] if first and number == 1 else []), f"{name}:{share:g}"]
            say(f"round {number} of {rounds}: {' + '.join(words)}")
            apply(source, "+".join(words), pruned, tokens=tokens, overrides=overrides if number == 1 else None, say=say)
        own = steps // rounds + (number <= steps % rounds)
        fields = {"train.init": str(pruned), "train.init_layers": "", "train.steps": own, "train.eval_every": 0}
        if (config := saved_config(pruned)) is None:
            raise UserError(f"{pruned} has no config.json; remove the folder, and the round is done again")
        fields |= {"train.decay_steps": None, "train.warmup": min(config.train.warmup, own // 10)}
        fields |= {} if number == rounds else {"train.schedule": "constant"}
        folder = out if number == rounds else out / "rounds" / f"{number}-trained"
        record = train(from_dict(to_dict(config), **fields), folder, progress=progress)
        if "stopped" in record:
            return {"workdir": str(out), "stopped": record["stopped"], "signal": record["signal"]}
        source = folder
    result = {"workdir": str(out), "recipe": recipe, "rounds": todo, **compared(workdir, out, None, overrides, say)}
    staged.write(out, NAME, asked, result)
    return result
