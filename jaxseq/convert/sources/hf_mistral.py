"""Mistral: transformers' MistralForCausalLM. Llama with a window in every layer; later versions have none."""

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry
from jaxseq.convert.sources import _decoders, _family, _hybrids

KINDS = {"Attention": "attention", "SwiGLU": "swiglu"}
rank = 1  # models without a window are exported as Llama


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "mistral"


def _layers(theirs: dict) -> list[_hybrids.Layer]:
    return [("attention", "swiglu")] * theirs["num_hidden_layers"]


def config(theirs: dict) -> ConfigDict:
    _fields.wanted("hf/mistral", theirs, hidden_act="silu", attention_bias=False, layer_types=None)
    cfg = _family.frame(theirs, _layers(theirs))
    cfg.model.attention = _family.attention_fields("hf/mistral", theirs, window=theirs.get("sliding_window", 4096))
    cfg.model.swiglu = {"hidden": theirs["intermediate_size"]}
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    found = _family.mixers(model, KINDS, norm="rmsnorm")
    if not found or found[0][0].bias or not _decoders.same_biases(found[0][0]):
        return None
    attention, swiglu = found[0]
    fields = _family.fields(model, found, "mistral", "MistralForCausalLM")
    return fields and fields | {"intermediate_size": swiglu.features, "sliding_window": attention.window}


aliases = _family.aliases


def entries(theirs: dict) -> list[Entry]:
    layers = _layers(theirs)
    token, channel = _hybrids.places(layers)
    return _family.outer(theirs, layers) + _family.attention(theirs, token) + _family.gated(channel)
