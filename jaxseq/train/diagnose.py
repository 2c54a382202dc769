"""Diagnosis of a non-finite step: the first array, and its layer, that is not finite."""

from collections.abc import Iterable

import jax
import numpy as np

from jaxseq.train.probe import Place, Probe
from jaxseq.train.step import Trainer, TrainState


def diagnose(trainer: Trainer, state: TrainState, batch: dict[str, jax.Array]) -> str:
    """Names the first non-finite array of the step from `state` (before the step) on `batch`; runs the step again in parts.

    The order is that of the computation: parameters, the modules' outputs, loss, gradients (from the last layer to the first),
    optimiser update.
    """
    probe = Probe(trainer)
    if bad := _bad(probe.leaves(state.params)):
        return f"parameter {_some(bad)} was already bad"
    for name, collection in state.collections.items():
        if bad := _bad(probe.leaves(collection)):
            return f"{name} {_some(bad)} was already bad"
    outputs = _bad(probe.outputs(state, batch))
    with trainer.scope():
        grads, metrics, _ = probe.gradients(state, batch)
    loss = float(np.asarray(metrics["loss"]))
    bad = sorted(_bad(probe.leaves(grads)), key=probe.when, reverse=True)
    if not np.isfinite(loss) or outputs:
        where = f"the output of {_some(outputs)} is the first that is bad" if outputs else "every module's output is finite"
        return f"the loss is {loss} from finite parameters: {where}"
    if bad:
        return f"gradient of {_some(bad)}, under a finite loss of {loss:.4g}"
    with trainer.scope():
        updates, _ = jax.jit(trainer.optimizer.update)(grads, state.optimizer, state.params)
    if bad := _bad(probe.leaves(updates)):
        return f"the update of {_some(bad)}, under finite gradients"
    return "a norm over all gradients or updates overflowed, under finite leaves"


def _bad(places: Iterable[Place]) -> list[Place]:
    return [place for place in places if not place.finite]


def _some(places: list[Place]) -> str:
    return f"{places[0]}" if len(places) == 1 else f"{places[0]} (and {len(places) - 1} more)"
