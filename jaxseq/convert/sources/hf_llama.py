"""Llama and its family (Llama 3, SmolLM2): transformers' LlamaForCausalLM. Rotary pairs are halves of a head, as in jaxseq."""

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry
from jaxseq.convert.sources import _decoders, _family, _hybrids, _stacks


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "llama"


def rename(names: set[str]) -> dict:
    """Older files contain the rotary frequencies."""
    return {name: name for name in names if not name.endswith(".rotary_emb.inv_freq")}


def _layers(theirs: dict) -> list[_hybrids.Layer]:
    return [("attention", "swiglu")] * theirs["num_hidden_layers"]


def config(theirs: dict) -> ConfigDict:
    _fields.wanted("hf/llama", theirs, hidden_act="silu", mlp_bias=False)
    cfg = _family.frame(theirs, _layers(theirs))
    cfg.model.attention = _family.attention_fields("hf/llama", theirs, bias=bool(theirs.get("attention_bias", False)))
    cfg.model.swiglu = {"hidden": theirs["intermediate_size"]}
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    found = _stacks.mixers(model, ("Attention", "SwiGLU"), norm="rmsnorm")
    if not found:
        return None
    ((attention, swiglu),) = found
    if attention.window or not _decoders.same_biases(attention):
        return None
    fields = _family.fields(model, found * model.layers, "llama", "LlamaForCausalLM")
    own = {"intermediate_size": swiglu.features, "attention_bias": attention.bias, "mlp_bias": False}
    return fields and fields | own


aliases = _family.aliases


def entries(theirs: dict) -> list[Entry]:
    layers, biases = _layers(theirs), "qkvo" if theirs.get("attention_bias") else ""
    token, channel = _hybrids.places(layers)
    return _family.outer(theirs, layers) + _family.attention(theirs, token, biases) + _family.gated(channel)
