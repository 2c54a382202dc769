"""After a step that was not finite: which array was the first to go bad."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.train.checkpoints import path_name
from jaxseq.train.step import Trainer, TrainState


def bad_leaves(tree: Any) -> list[str]:
    """Paths of the leaves that hold a number that is not finite."""
    finite = jax.jit(lambda tree: jax.tree.map(lambda leaf: jnp.all(jnp.isfinite(leaf)), tree))(tree)
    flags = jax.tree_util.tree_flatten_with_path(jax.device_get(finite))[0]
    return [path_name(path) for path, flag in flags if not flag]


def diagnose(trainer: Trainer, state: TrainState, batch: dict[str, jax.Array]) -> str:
    """What went bad first when `state` (as it was before the step) met `batch`, by running the step again in pieces.

    The order is that of the computation: parameters, loss, gradients, and then the optimiser's update.
    """
    with trainer.scope():
        if bad := bad_leaves(state.params):
            return f"parameter {_some(bad)} was already bad"
        if bad := bad_leaves(state.collections):
            return f"{_some(bad)} was already bad"
        grads, metrics, _ = jax.jit(trainer.gradients)(state.params, batch, state.step, state.collections)
        loss = float(np.asarray(metrics["loss"]))
        bad = bad_leaves(grads)
        if not np.isfinite(loss):
            return (
                f"the loss is {loss} from finite parameters, and gradient {_some(bad)} with it" if bad else f"the loss is {loss}"
            )
        if bad:
            return f"gradient {_some(bad)}, under a finite loss of {loss:.4g}"
        updates, _ = jax.jit(trainer.optimizer.update)(grads, state.optimizer, state.params)
        if bad := bad_leaves(updates):
            return f"the update of {_some(bad)}, under finite gradients"
        return "a norm over all gradients or updates overflowed, under finite leaves"


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"
