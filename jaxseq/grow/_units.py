"""Shared by the steps that add heads or channels."""

import jax

from jaxseq import recipes
from jaxseq.errors import UserError
from jaxseq.grow._expand import expand
from jaxseq.models import _stack


def apply(work: recipes.Candidate, kind: str, copies: int, key: jax.Array) -> recipes.Candidate:
    """`copies` times as many heads or channels in each mixer that has such units."""
    found, fields, left = {}, {}, {}
    for n, (block, segment) in enumerate(zip(work.model.blocks, _stack.parse(work.config.model.stack), strict=True)):
        for mixer, label in zip(block.mixers, segment.labels, strict=True):
            units = mixer.units(kind)
            if isinstance(units, str):
                left[label] = units
                continue
            found[f"blocks_{n}/{mixer.name}/"] = units
            fields |= {f"model.{label}.{name}": value for name, value in units.fields(copies * units.count).items()}
    if not found:
        raise UserError(f"no {kind} can be added to this model: {'; '.join(sorted(set(left.values())))}")
    for label, reason in left.items():
        work.say(f"{label} keeps its size: {reason}")

    def count(path: str, axis: str, size: int) -> int:
        units = next((units for prefix, units in found.items() if path.startswith(prefix)), None)
        return units.count if units and axis == "mlp" else size

    return expand(work, fields, copies, key, count)
