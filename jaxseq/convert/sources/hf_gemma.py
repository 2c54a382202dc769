"""Gemma: transformers' GemmaForCausalLM. Norms multiply by 1 + weight, embeddings by sqrt(width)."""

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry
from jaxseq.convert.sources import _decoders, _family, _hybrids

KINDS = {"Attention": "attention", "GeGLU": "geglu"}
TIED = True  # the default
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu_tanh"}  # the released code uses the tanh approximation for both


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "gemma"


def _layers(theirs: dict) -> list[_hybrids.Layer]:
    return [("attention", "geglu")] * theirs["num_hidden_layers"]


def config(theirs: dict) -> ConfigDict:
    _fields.wanted("hf/gemma", theirs, hidden_activation="gelu_pytorch_tanh", use_bidirectional_attention=False)
    activation = _fields.choice("hf/gemma", theirs, "hidden_act", ACTIVATIONS, "gelu_pytorch_tanh")
    cfg = _family.frame(theirs, _layers(theirs), tied=TIED)
    cfg.model.norm, cfg.model.scaled_embedding = "rmsnorm_offset", True
    cfg.model.attention = _family.attention_fields("hf/gemma", theirs, bias=bool(theirs.get("attention_bias", False)))
    cfg.model.geglu = {"hidden": theirs["intermediate_size"], "activation": activation}
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    scale = float(getattr(model, "width", 0)) ** 0.5
    found = _family.mixers(model, KINDS, norm="rmsnorm_offset", embedding_scale=scale)
    if not found:
        return None
    attention, geglu = found[0]
    if attention.window or not _decoders.same_biases(attention) or not _decoders.has(geglu, bias=False, activation="gelu_tanh"):
        return None
    fields = _family.fields(model, found, "gemma", "GemmaForCausalLM")
    own = {"hidden_act": "gelu_pytorch_tanh", "intermediate_size": geglu.features, "attention_bias": attention.bias}
    return fields and fields | own


def aliases(theirs: dict) -> dict:
    return _family.aliases(theirs, tied=TIED)


def entries(theirs: dict) -> list[Entry]:
    layers, biases = _layers(theirs), "qkvo" if theirs.get("attention_bias") else ""
    token, channel = _hybrids.places(layers)
    outer = _family.outer(theirs, layers, tied=TIED)
    return outer + _family.attention(theirs, token, biases) + _family.gated(channel)
