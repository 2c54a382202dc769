"""Fewer layers: layers:0.25 removes a quarter of the repeated blocks, one at a time: the one whose removal costs least."""

import jax.numpy as jnp

from jaxseq import weights
from jaxseq.compress._work import Work, share
from jaxseq.errors import UserError
from jaxseq.models import _stack


def apply(work: Work, argument: str) -> Work:
    """A smaller model with a shorter `model.stack`. The loss is measured on calibration data."""
    part = share(argument, "layers")
    if "stack" not in work.config.model:
        raise UserError(f"layers are removed from causal language models only, not from a {work.config.model.kind}")
    if any(mixer.numbered for block in work.model.blocks for mixer in block.mixers):
        raise UserError("the layers of this model depend on their number, so none can be removed")
    total = sum(segment.repeats for segment in _stack.parse(work.config.model.stack))
    for done in range(count := round(part * total)):
        work.say(f"removing layer {done + 1} of {count}")
        work = _without_one(work)
    if not count:
        raise UserError(f"layers:{argument} of {total} layers removes none; give a larger fraction")
    return work


def _without_one(work: Work) -> Work:
    segments = _stack.parse(work.config.model.stack)
    removable = [(n, s) for n, s in enumerate(segments) if s.repeats > 1 and not s.distinct]
    choices = [(n, i) for n, segment in removable for i in range(segment.repeats)]
    if not choices:
        raise UserError("each block of this model occurs once, or shares its weights, so none can be removed; lower the fraction")
    found = [(work.calibration.loss((one := without(work, n, i)).model, one.params), n, i) for n, i in choices]
    return without(work, *min(found)[1:])


def without(work: Work, n: int, i: int) -> Work:
    """The model without repeat i of its segment n."""
    segments = list(_stack.parse(work.config.model.stack))
    segments[n] = segments[n].repeated(segments[n].repeats - 1)
    drop = lambda x: jnp.delete(x, i, axis=0, assume_unique_indices=True)  # noqa: E731
    new = {path: drop(x) for path, x in weights.leaves(work.params).items() if path.startswith(f"blocks_{n}/")}
    return work.configured({"model.stack": _stack.text(segments)}).replaced(new, {})
