"""Recognising our models, for `describe`."""

from jaxseq.models.lm import LM


def mixers(model, *segments: tuple[str, ...], **fields) -> list[tuple] | None:
    """The mixers of each segment, if `model` is a causal LM of these mixer classes alone in residual blocks without positions,
    its other fields being as in `fields`; else None."""
    fields = {"positions": "none", "embedding_norm": False, "embedding_scale": 1.0} | fields
    if not isinstance(model, LM) or any(getattr(model, name) != value for name, value in fields.items()):
        return None
    found = [tuple(type(mixer).__name__ for mixer in block.mixers) for block in model.blocks]
    residual = all(type(block).__name__ == "Residual" for block in model.blocks)
    return [block.mixers for block in model.blocks] if residual and found == list(segments) else None
