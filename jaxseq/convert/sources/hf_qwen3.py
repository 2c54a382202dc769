"""Qwen3 (dense): transformers' Qwen3ForCausalLM. Each head's q and k are normed."""

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry
from jaxseq.convert.sources import _decoders, _family, _hybrids, hf_qwen2

KINDS = {"NormedAttention": _family.label_of, "SwiGLU": "swiglu"}


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "qwen3"


def config(theirs: dict) -> ConfigDict:
    source = "hf/qwen3"
    _fields.wanted(source, theirs, hidden_act="silu")
    own = hf_qwen2.layers(source, theirs, "normed_attention")
    cfg = _family.frame(theirs, own)
    attention = _family.attention_fields(
        source, theirs, bias=bool(theirs.get("attention_bias", False)), eps=theirs["rms_norm_eps"]
    )
    for label in {token for token, _ in own}:
        cfg.model[label] = attention | {"window": hf_qwen2.window(theirs) if label.endswith(":local") else None}
    cfg.model.swiglu = {"hidden": theirs["intermediate_size"]}
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    found = _family.mixers(model, KINDS, norm="rmsnorm")
    if not found:
        return None
    attention, swiglu = found[0]
    wanted = {"gated": False, "joint": False, "norm": "rmsnorm", "eps": model.norm_eps}
    if not _decoders.has(attention, **wanted) or not _decoders.same_biases(attention):
        return None
    fields = _family.fields(model, found, "qwen3", "Qwen3ForCausalLM")
    own = {"intermediate_size": swiglu.features, "attention_bias": attention.bias}
    return fields and fields | hf_qwen2.windows(found) | own


aliases = _family.aliases


def entries(theirs: dict) -> list[Entry]:
    own, biases = hf_qwen2.layers("hf/qwen3", theirs, "normed_attention"), "qkvo" if theirs.get("attention_bias") else ""
    table = _family.outer(theirs, own)
    for place in _hybrids.places(own):
        if place.label == "swiglu":
            table += _family.gated(place)
        else:
            table += _family.attention(theirs, place, biases, ("q_norm", "k_norm"))
    return table
