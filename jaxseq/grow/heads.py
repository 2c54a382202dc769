"""More heads in each attention: heads:2 has twice as many of the same size. Key/value heads are copied with their queries."""

import jax

from jaxseq import recipes
from jaxseq.grow import _expand, _units


def apply(work: recipes.Candidate, argument: str, key: jax.Array) -> recipes.Candidate:
    """A larger model; the fields of its config change with it."""
    return _units.apply(work, "heads", _expand.factor(argument, "heads"), key)
