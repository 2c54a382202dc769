"""More hidden channels in each MLP, RWKV channel mix and Mamba: channels:2 has twice as many."""

import jax

from jaxseq import recipes
from jaxseq.grow import _expand, _units


def apply(work: recipes.Candidate, argument: str, key: jax.Array) -> recipes.Candidate:
    """A larger model; the fields of its config change with it."""
    return _units.apply(work, "channels", _expand.factor(argument, "channels"), key)
