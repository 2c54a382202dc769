"""Shared by the sources of decoder Transformers."""

from typing import Any

from flax import linen as nn

from jaxseq.convert import _fields
from jaxseq.errors import UserError

LLAMA = {  # its attention
    "window": None, "rotary": True, "rotary_fraction": 1.0, "interleaved": False, "alibi": False, "rope_scaling": "none",
    "scale": None, "cap": None, "sink": False,
}  # fmt: skip


def has(module: nn.Module, **fields: Any) -> bool:
    return all(getattr(module, name) == value for name, value in fields.items())


def same_biases(attention: nn.Module) -> bool:
    """Whether the output projection has a bias exactly if q, k and v have one."""
    return attention.output_bias in (None, attention.bias)


def even_heads(attention: nn.Module) -> bool:
    """Whether heads x head size is the width, and every head has its own keys and values."""
    alone = attention.kv_heads in (None, attention.heads)
    return alone and attention.head_size in (None, attention.width // attention.heads)


def theta(theirs: dict, default: float = 10000.0) -> float:
    """The base of rotary positions; old and new configs store it in different fields."""
    for settings in (theirs.get("rope_parameters") or {}, theirs):
        if settings.get("rope_theta") is not None:
            return float(_fields.number(settings, "rope_theta", _fields.POSITIVE))
    return default


def plain_rotary(source: str, theirs: dict) -> None:
    """Raises UserError if rotary frequencies are scaled for longer contexts."""
    for field in ("rope_scaling", "rope_parameters"):
        settings = theirs.get(field) or {}
        kind = settings.get("rope_type", settings.get("type", "default"))
        if kind != "default":
            raise UserError(f"{source} has no {kind} rotary positions, and this config has {field}={_fields.shown(settings)}")
