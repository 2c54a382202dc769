"""Qwen 2 and 2.5: transformers' Qwen2ForCausalLM. Biases on q, k and v; some sizes have windows in their last layers."""

from collections.abc import Sequence

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry
from jaxseq.convert.sources import _decoders, _family, _hybrids

KINDS = {"Attention": _family.label_of, "SwiGLU": "swiglu"}


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "qwen2"


def window(theirs: dict) -> int | None:
    return theirs.get("sliding_window") if theirs.get("use_sliding_window") else None


def layers(source: str, theirs: dict, label: str) -> list[_hybrids.Layer]:
    """The layers, also of Qwen3. If the config sets no window, all attention is full, even if `layer_types` says otherwise."""
    count, kinds = theirs["num_hidden_layers"], theirs.get("layer_types")
    if kinds is None:
        first = theirs.get("max_window_layers", 28)
        kinds = ["full_attention" if i < first else "sliding_attention" for i in range(count)]
    kinds = kinds if window(theirs) else ["full_attention"] * count
    return [(kind, "swiglu") for kind in _family.windowed(source, kinds, label)]


def config(theirs: dict) -> ConfigDict:
    _fields.wanted("hf/qwen2", theirs, hidden_act="silu")
    own = layers("hf/qwen2", theirs, "attention")
    cfg = _family.frame(theirs, own)
    attention = _family.attention_fields("hf/qwen2", theirs, bias=True, output_bias=False)
    for label in {token for token, _ in own}:
        cfg.model[label] = attention | {"window": window(theirs) if label.endswith(":local") else None}
    cfg.model.swiglu = {"hidden": theirs["intermediate_size"]}
    return finish(cfg)


def windows(found: Sequence[tuple]) -> dict:
    """The fields of their config for windows, also of Qwen3."""
    kinds, sizes = _family.layer_types(found), {token.window for token, _ in found if token.window}
    return {
        "layer_types": kinds,
        "use_sliding_window": bool(sizes),
        "sliding_window": next(iter(sizes), None),
        "max_window_layers": (kinds + ["sliding_attention"]).index("sliding_attention"),
    }


def describe(model: nn.Module) -> dict | None:
    found = _family.mixers(model, KINDS, norm="rmsnorm")
    if not found or not _decoders.has(found[0][0], bias=True, output_bias=False):
        return None
    fields = _family.fields(model, found, "qwen2", "Qwen2ForCausalLM")
    return fields and fields | windows(found) | {"intermediate_size": found[0][1].features}


aliases = _family.aliases


def entries(theirs: dict) -> list[Entry]:
    own = layers("hf/qwen2", theirs, "attention")
    table = _family.outer(theirs, own)
    for place in _hybrids.places(own):
        table += _family.gated(place) if place.label == "swiglu" else _family.attention(theirs, place, "qkv")
    return table
