"""More hidden channels in each MLP, RWKV channel mix and Mamba: channels:2 has twice as many."""

import jax

from jaxseq import recipes
from jaxseq.grow import _expand, _units


def apply(work: recipes.Work, argument: str, key: jax.Array) -> recipes.Work:
    """A larger model; the fields of its config change with it."""
    return _units.apply(work, "channels", _expand.factor(argument, "channels"), key)
