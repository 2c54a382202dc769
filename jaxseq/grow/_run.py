"""Applies a recipe to the weights of a workdir and checks that the larger model computes the same."""

import logging
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq import recipes
from jaxseq.errors import UserError
from jaxseq.train import load_variables, save_params

ALLOWED = 1e-4  # change of the logits, relative to the largest
TOKENS = 2, 48  # rows and length of the random tokens that the models are compared on
log = logging.getLogger(__name__)


def grow(
    workdir: str | os.PathLike, recipe: str, out: str | os.PathLike, *, step: int | None = None, seed: int = 0,
    say: Callable[[str], None] = log.info,
) -> dict[str, Any]:  # fmt: skip
    """Writes the larger model to the workdir `out`; returns what the command prints as JSON.

    step: of the checkpoint, default the latest. seed: of the random numbers by which copies differ. say: called with a line about
    the progress.

    Raises UserError for a recipe that cannot be applied or would change what the model computes; nothing is written then.
    """
    wanted = recipes.steps("grow", recipe)
    model, variables, config = load_variables(workdir, step)
    if config.model.kind != "lm":
        raise UserError(f"{workdir} holds a model of kind {config.model.kind}; only causal language models grow")
    if config.model.weights or config.train.lora_rank:
        raise UserError(f"{workdir} holds weights that are quantized, pruned or adapted; grow the model that they were made from")
    work = recipes.Candidate(config, variables["params"], say)
    difference = 0.0
    for number, (module, argument) in enumerate(wanted):
        before, work = work, module.apply(work, argument, jax.random.fold_in(jax.random.key(seed), number))
        difference = max(difference, _difference(before, work, recipe.split("+")[number].strip()))
    say(f"writing {out}")
    save_params(out, work.config, {**variables, "params": work.params})
    count = lambda params: sum(x.size for x in jax.tree.leaves(params))  # noqa: E731
    sizes = {"before": {"parameters": count(variables["params"])}, "after": {"parameters": count(work.params)}}
    return {"workdir": str(out), "recipe": recipe, "difference": difference, "stack": work.config.model.stack} | sizes


def _difference(before: recipes.Candidate, after: recipes.Candidate, step: str) -> float:
    """The largest change of the logits, relative to the largest logit. Raises UserError if it is more than rounding."""
    shapes = jax.tree.map(lambda box: box.value.shape, after.boxes, is_leaf=lambda leaf: hasattr(leaf, "contracts"))
    if shapes != jax.tree.map(jnp.shape, after.params):
        raise UserError(f"{step} does not fit this model: other sizes would change with it; choose another step")
    tokens = jax.random.randint(jax.random.key(0), TOKENS, 0, before.model.vocab)
    logits = lambda work: np.asarray(jax.jit(work.model.apply)({"params": work.params}, tokens)[0])  # noqa: E731
    old, new = logits(before), logits(after)
    difference = float(np.abs(new - old).max() / np.abs(old).max())
    if not difference <= ALLOWED:
        raise UserError(f"{step} would change what this model computes (its logits by {difference:.1e}); choose another step")
    return difference
