"""OLMo 2: transformers' Olmo2ForCausalLM. Norms on the outputs of attention and feed-forward; q and k normed over all heads."""

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry
from jaxseq.convert.sources import _decoders, _family, _hybrids

KINDS = {"NormedAttention": "normed_attention", "SwiGLU": "swiglu"}
NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "olmo2"


def _layers(theirs: dict) -> list[_hybrids.Layer]:
    return [("normed_attention", "swiglu")] * theirs["num_hidden_layers"]


def config(theirs: dict) -> ConfigDict:
    _fields.wanted("hf/olmo2", theirs, hidden_act="silu")
    cfg = _family.frame(theirs, _layers(theirs))
    cfg.model.block = "output_norm"
    cfg.model.normed_attention = _family.attention_fields(
        "hf/olmo2", theirs, bias=bool(theirs.get("attention_bias", False)), joint=True, eps=theirs["rms_norm_eps"]
    )
    cfg.model.swiglu = {"hidden": theirs["intermediate_size"]}
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    found = _family.mixers(model, KINDS, block="OutputNorm", norm="rmsnorm")
    if not found or any(block.pre for block in model.blocks):
        return None
    attention, swiglu = found[0]
    wanted = {"gated": False, "joint": True, "norm": "rmsnorm", "eps": model.norm_eps, "window": None}
    if not _decoders.has(attention, **wanted) or not _decoders.same_biases(attention):
        return None
    fields = _family.fields(model, found, "olmo2", "Olmo2ForCausalLM")
    return fields and fields | {"intermediate_size": swiglu.features, "attention_bias": attention.bias}


aliases = _family.aliases


def entries(theirs: dict) -> list[Entry]:
    layers, biases = _layers(theirs), "qkvo" if theirs.get("attention_bias") else ""
    token, channel = _hybrids.places(layers)
    attention = _family.attention(theirs, token, biases, ("q_norm", "k_norm"))
    return _family.outer(theirs, layers, NORMS) + attention + _family.gated(channel)
