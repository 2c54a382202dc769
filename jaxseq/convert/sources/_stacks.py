"""Recognises models of jaxseq, for `describe`."""

from typing import Any

from jaxseq.models.lm import LM

PLAIN = {  # fields of a model that only some sources can hold
    "positions": "none", "position_offset": 0, "embedding_norm": False, "embedding_scale": 1.0, "embedding_width": 0,
    "distinct": None, "last_norm": True, "logit_scale": 1.0, "logit_cap": 0.0,
}  # fmt: skip


def mixers(model: Any, *segments: tuple[str, ...], block: str = "Residual", **fields: Any) -> list[tuple] | None:
    """The mixers of each segment, or None unless `model` is a causal LM with exactly these classes of mixers and blocks and the
    other fields as in PLAIN and `fields`."""
    fields = PLAIN | fields
    if not isinstance(model, LM) or any(getattr(model, name) != value for name, value in fields.items()):
        return None
    found = [tuple(type(mixer).__name__ for mixer in each.mixers) for each in model.blocks]
    alike = all(type(each).__name__ == block for each in model.blocks)
    return [each.mixers for each in model.blocks] if alike and found == list(segments) else None
