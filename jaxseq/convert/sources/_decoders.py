"""What the sources of decoder Transformers share."""

from typing import Any

from flax import linen as nn

LLAMA = {"window": None, "rotary": True, "rotary_fraction": 1.0, "interleaved": False, "alibi": False}  # its attention


def has(module: nn.Module, **fields: Any) -> bool:
    return all(getattr(module, name) == value for name, value in fields.items())


def same_biases(attention: nn.Module) -> bool:
    """Whether the output has a bias if q, k and v have."""
    return attention.output_bias in (None, attention.bias)


def even_heads(attention: nn.Module) -> bool:
    """Whether heads divide the width among them, each with keys and values of its own."""
    alone = attention.kv_heads in (None, attention.heads)
    return alone and attention.head_size in (None, attention.width // attention.heads)


def theta(theirs: dict, default: float = 10000.0) -> float:
    """Of rotary positions, where configs of today and of yesterday keep it."""
    return float((theirs.get("rope_parameters") or {}).get("rope_theta") or theirs.get("rope_theta") or default)


def plain_rotary(theirs: dict) -> bool:
    """Whether the positions are turned as they are: no scaling of frequencies for longer contexts."""
    settings = (theirs.get("rope_parameters") or {}) | (theirs.get("rope_scaling") or {})
    return settings.get("rope_type", settings.get("type", "default")) == "default"
