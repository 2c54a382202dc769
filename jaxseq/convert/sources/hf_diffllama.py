"""DiffLlama: transformers' DiffLlamaForCausalLM, Llama with differential attention."""

from typing import Any

from ml_collections import ConfigDict

from jaxseq.config import finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, same
from jaxseq.convert.sources import _decoders, _family, _hybrids

KINDS = {"DifferentialAttention": "differential_attention", "SwiGLU": "swiglu"}


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "diffllama"


def _layers(theirs: dict) -> list[_hybrids.Layer]:
    return [("differential_attention", "swiglu")] * theirs["num_hidden_layers"]


def config(theirs: dict) -> ConfigDict:
    _fields.wanted("hf/diffllama", theirs, hidden_act="silu")
    cfg = _family.frame(theirs, _layers(theirs))
    cfg.model.differential_attention = _family.attention_fields(
        "hf/diffllama", theirs, bias=bool(theirs.get("attention_bias", False)), eps=theirs["rms_norm_eps"],
        lambda_std=theirs.get("lambda_std_dev", 0.1),
    )  # fmt: skip
    cfg.model.swiglu = {"hidden": theirs["intermediate_size"]}
    return finish(cfg)


def describe(model: Any) -> dict | None:
    found = _family.mixers(model, KINDS, norm="rmsnorm")
    if not found:
        return None
    attention, swiglu = found[0]
    if attention.window or attention.eps != model.norm_eps or not _decoders.same_biases(attention):
        return None
    fields = _family.fields(model, found, "diffllama", "DiffLlamaForCausalLM")
    own = {"intermediate_size": swiglu.features, "attention_bias": attention.bias, "lambda_std_dev": attention.lambda_std}
    return fields and fields | own


aliases = _family.aliases


def entries(theirs: dict) -> list[Entry]:
    layers, biases = _layers(theirs), "qkvo" if theirs.get("attention_bias") else ""
    token, channel = _hybrids.places(layers)
    names = [f"lambda_{name}" for name in ("q1", "k1", "q2", "k2")]
    lambdas = [same(f"{token.path}/{name}", f"model.layers.{{layer}}.self_attn.{name}", token.layers) for name in names]
    return _family.outer(theirs, layers) + _family.attention(theirs, token, biases) + lambdas + _family.gated(channel)
