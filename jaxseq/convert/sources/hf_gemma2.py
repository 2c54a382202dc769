"""Gemma 2: transformers' Gemma2ForCausalLM. Norms before and after each part, capped scores and logits, alternating windows."""

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, norm
from jaxseq.convert.sources import _decoders, _family, _hybrids
from jaxseq.convert.sources.hf_gemma import TIED

KINDS = {"Attention": _family.label_of, "GeGLU": "geglu"}
NORMS = {  # {label of a mixer: the norms before and after it}
    "attention": ("input_layernorm", "post_attention_layernorm"),
    "attention:local": ("input_layernorm", "post_attention_layernorm"),
    "geglu": ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
}


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "gemma2"


def _layers(theirs: dict) -> list[_hybrids.Layer]:
    return _family.in_turn("hf/gemma2", theirs, "geglu")


def config(theirs: dict) -> ConfigDict:
    source, layers = "hf/gemma2", _layers(theirs)
    _fields.wanted(source, theirs, hidden_activation="gelu_pytorch_tanh", use_bidirectional_attention=False)
    cfg = _family.frame(theirs, layers, tied=TIED)
    cfg.model.block, cfg.model.norm, cfg.model.scaled_embedding = "sandwich", "rmsnorm_offset", True
    cfg.model.logit_cap = float(theirs.get("final_logit_softcapping") or 0)
    attention = _family.attention_fields(source, theirs, bias=bool(theirs.get("attention_bias", False)))
    attention |= {"scale": float(theirs["query_pre_attn_scalar"]) ** -0.5, "cap": theirs.get("attn_logit_softcapping")}
    for label, own in _family.by_window(layers, attention, theirs.get("sliding_window", 4096)).items():
        cfg.model[label] = own
    cfg.model.geglu = {"hidden": theirs["intermediate_size"], "activation": "gelu_tanh"}
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    own = {"embedding_scale": float(getattr(model, "width", 0)) ** 0.5, "logit_cap": getattr(model, "logit_cap", 0.0)}
    found = _family.mixers(model, KINDS, block="Sandwich", norm="rmsnorm_offset", **own)
    if not found:
        return None
    attention, geglu = found[0]
    if not _decoders.same_biases(attention) or not _decoders.has(geglu, bias=False, activation="gelu_tanh"):
        return None
    scale = attention.scale or (attention.head_size or model.width // attention.heads) ** -0.5
    scalar = round(scale**-2)  # a whole number in their config
    theirs = _family.fields(model, [(attention.clone(scale=None, cap=None), None)] * len(found), "gemma2", "Gemma2ForCausalLM")
    if theirs is None or abs(scalar**-0.5 - scale) > 1e-15:
        return None
    del theirs["hidden_act"]
    return theirs | {
        "hidden_activation": "gelu_pytorch_tanh",
        "intermediate_size": geglu.features,
        "attention_bias": attention.bias,
        "layer_types": _family.layer_types(found),
        "sliding_window": next((token.window for token, _ in found if token.window), 4096),
        "query_pre_attn_scalar": scalar,
        "attn_logit_softcapping": attention.cap,
        "final_logit_softcapping": model.logit_cap or None,
    }


def aliases(theirs: dict) -> dict:
    return _family.aliases(theirs, tied=TIED)


def entries(theirs: dict) -> list[Entry]:
    layers, biases = _layers(theirs), "qkvo" if theirs.get("attention_bias") else ""
    table = _family.outer(theirs, layers, {label: before for label, (before, _) in NORMS.items()}, tied=TIED)
    for place in _hybrids.places(layers):
        table += norm(f"{place.norm}_out", f"model.layers.{{layer}}.{NORMS[place.label][1]}", place.layers, bias=False)
        table += _family.gated(place) if place.label == "geglu" else _family.attention(theirs, place, biases)
    return table
