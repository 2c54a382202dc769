"""More layers: layers:1.5 adds one copy to every second block. The copies' output projections are zero, so at first they add
nothing to the residual stream (LLaMA Pro, Wu et al. 2024, arXiv:2401.02415, §3.2)."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq import recipes, weights
from jaxseq.errors import UserError
from jaxseq.models import _stack


def apply(work: recipes.Candidate, argument: str, key: jax.Array) -> recipes.Candidate:
    """A deeper model with a longer `model.stack`."""
    factor = _factor(argument)
    if any(mixer.numbered for block in work.model.blocks for mixer in block.mixers):
        raise UserError("the layers of this model depend on their number, so none can be added; choose another step")
    segments, boxes, arrays, new = list(_stack.parse(work.config.model.stack)), weights.leaves(work.boxes), {}, 0
    for n, segment in enumerate(segments):
        repeats = segment.repeats if segment.fixed or segment.distinct else round(factor * segment.repeats)
        source_L = np.arange(repeats) * segment.repeats // repeats
        copy_L = np.diff(source_L, prepend=-1) == 0
        for path, x in weights.leaves(work.params).items():
            if path.startswith(f"blocks_{n}/") and copy_L.any():
                zero_L = copy_L & _is_output(path, boxes[path])
                arrays[path] = jnp.where(zero_L.reshape(-1, *[1] * (x.ndim - 1)), 0, x[source_L])
        segments[n], new = segment._replace(repeats=repeats), new + copy_L.sum()
    if not new:
        raise UserError(f"layers:{argument} adds no layer: blocks that occur once or share their weights are not repeated")
    work.say(f"{new} layers are added")
    return work.configured({"model.stack": _stack.text(segments)}).with_arrays(arrays)


def _factor(argument: str) -> float:
    try:
        value = float(argument)
    except ValueError:
        value = 0.0
    if not 1 < value <= 100:
        raise UserError(f"layers:{argument} needs a number between 1 and 100; write it like layers:1.5")
    return value


def _is_output(path: str, box) -> bool:
    """Whether a parameter maps to the residual stream: a projection to the axis "embed", or its bias."""
    return box.names[-1] == "embed" and (bool(box.contracts) or path.endswith("bias"))
