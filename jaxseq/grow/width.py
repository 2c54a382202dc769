"""A wider residual stream: width:2 makes the model's width twice as large; heads and hidden channels stay as they are."""

import jax
import jax.numpy as jnp

from jaxseq import recipes, weights
from jaxseq.grow import _expand
from jaxseq.models import _stack


def apply(work: recipes.Candidate, argument: str, key: jax.Array) -> recipes.Candidate:
    """A larger model; the fields of its config that would follow the width are set to their present values.

    Raises UserError if other sizes of the model follow the width and no field sets them.
    """
    copies, model, scale = _expand.factor(argument, "width"), work.config.model, work.model.embedding_scale
    fields = {"model.width": copies * model.width, "model.scaled_embedding": False}
    for block, segment in zip(work.model.blocks, _stack.parse(model.stack), strict=True):
        for mixer, label in zip(block.mixers, segment.labels, strict=True):
            for kind in ("heads", "channels"):
                if not isinstance(units := mixer.units(kind), str):
                    fields |= {f"model.{label}.{name}": value for name, value in units.fields(units.count).items()}
    # A head that is the embedding's transpose sums over the copies, so a tied embedding is divided and its output multiplied.
    divided = copies if work.model.tied else 1
    wider = _expand.expand(work, fields | {"model.embedding_scale": divided * scale}, copies, key, lambda path, axis, size: size)
    embedding_VD = weights.leaves(work.params)["embedding"]
    return wider.with_arrays({"embedding": jnp.tile(embedding_VD, (1, copies)) / divided})
