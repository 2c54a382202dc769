"""Attention layers of Deformable DETR: sampling_offsets, attention_weights, value_proj, output_proj; single layers."""

from flax import linen as nn

from jaxseq.convert._table import Entry, linear, reshaped, same
from jaxseq.deformable import DeformableAttention

FIELDS = {"d_model": "width", "n_heads": "heads", "n_levels": "levels", "n_points": "points"}


def recognises(theirs: dict, names: set[str]) -> bool:
    return {"sampling_offsets.weight", "attention_weights.weight", "value_proj.weight", "output_proj.weight"} <= names


def module(theirs: dict) -> DeformableAttention:
    return DeformableAttention(**{ours: theirs[name] for name, ours in FIELDS.items()})


def describe(model: nn.Module) -> dict | None:
    if not isinstance(model, DeformableAttention):
        return None
    return {name: getattr(model, ours) for name, ours in FIELDS.items()}


def entries(theirs: dict) -> list[Entry]:
    width, heads, levels, points = (theirs[name] for name in FIELDS)
    shapes = {
        "offsets": ("sampling_offsets", (heads, levels, points, 2)),
        "weights": ("attention_weights", (heads, levels, points)),
        "v": ("value_proj", (heads, width // heads)),
    }
    table = [
        linear("o/kernel", "output_proj.weight", shape=(heads, width // heads, width), inputs=2),
        same("o/bias", "output_proj.bias"),
    ]
    for ours, (name, shape) in shapes.items():
        table += [
            linear(f"{ours}/kernel", f"{name}.weight", shape=(width, *shape)),
            reshaped(f"{ours}/bias", f"{name}.bias", shape, (-1,)),
        ]
    return table
