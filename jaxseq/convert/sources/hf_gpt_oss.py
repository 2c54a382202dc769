"""gpt-oss (20B, 120B) in bfloat16 or float32: transformers' GptOssForCausalLM. Attention with sinks, clamped experts."""

import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, linear, same
from jaxseq.convert.sources import _decoders, _family, _hybrids

KINDS = {"Attention": _family.label_of, "ClampedMoE": "clamped_moe"}
YARN = {  # the default of their config
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "gpt_oss"


def _layers(theirs: dict) -> list[_hybrids.Layer]:
    return _family.in_turn("hf/gpt_oss", theirs, "clamped_moe")


def config(theirs: dict) -> ConfigDict:
    source, layers = "hf/gpt_oss", _layers(theirs)
    _fields.wanted(source, theirs, hidden_act="silu")
    given = theirs if theirs.get("rope_parameters") or theirs.get("rope_scaling") else theirs | {"rope_parameters": YARN}
    cfg = _family.frame(theirs, layers)
    attention = _family.attention_fields(source, given, theta=150000.0, bias=_biased(theirs), sink=True)
    for label, own in _family.by_window(layers, attention, theirs.get("sliding_window", 128)).items():
        cfg.model[label] = own
    cfg.model.clamped_moe = {
        "experts": theirs["num_local_experts"],
        "top_k": theirs["num_experts_per_tok"],
        "hidden": theirs["intermediate_size"],
        "alpha": float(theirs.get("swiglu_alpha", 1.702)),
        "limit": float(theirs.get("swiglu_limit", 7.0)),
        "balance_loss": float(theirs.get("router_aux_loss_coef", 0.001)),
    }
    return finish(cfg)


def _biased(theirs: dict) -> bool:
    return bool(theirs.get("attention_bias", True))


def describe(model: nn.Module) -> dict | None:
    found = _family.mixers(model, KINDS, norm="rmsnorm")
    if not found:
        return None
    attention, moe = found[0]
    routing = {"bias": True, "normalize": True, "z_loss": 0.0, "jitter": 0.0}
    if not attention.sink or not _decoders.same_biases(attention) or not _decoders.has(moe, **routing):
        return None
    theirs = _family.fields(model, [(attention.clone(sink=False), None)] * len(found), "gpt_oss", "GptOssForCausalLM")
    return theirs and theirs | {
        "attention_bias": attention.bias,
        "layer_types": _family.layer_types(found),
        "sliding_window": next((token.window for token, _ in found if token.window), 128),
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "intermediate_size": moe.features,
        "swiglu_alpha": moe.alpha,
        "swiglu_limit": moe.limit,
        "router_aux_loss_coef": moe.balance_loss,
    }


aliases = _family.aliases


def entries(theirs: dict) -> list[Entry]:
    layers = _layers(theirs)
    table = _family.outer(theirs, layers)
    for place in _hybrids.places(layers):
        if place.label == "clamped_moe":
            table += _moe(place)
        else:
            table += _family.attention(theirs, place, "qkvo" if _biased(theirs) else "")
            table.append(same(f"{place.path}/sink", "model.layers.{layer}.self_attn.sinks", place.layers))
    return table


def _moe(place: _hybrids.MixerPlace) -> list[Entry]:
    """The rows of gate and up alternate."""
    ours, at, layers = place.path, "model.layers.{layer}.mlp", place.layers

    def apart(x):
        return x[..., ::2], x[..., 1::2]

    def together(gate, up):
        return (np.stack([gate, up], axis=-1).reshape(*gate.shape[:-1], -1),)

    table = [linear(f"{ours}/router/kernel", f"{at}.router.weight", layers)]
    table.append(same(f"{ours}/router/bias", f"{at}.router.bias", layers))
    for end in ("", "_bias"):
        paths = (f"{ours}/gate{end}", f"{ours}/up{end}")
        table.append(Entry(paths, (f"{at}.experts.gate_up_proj{end}",), apart, together, layers))
        table.append(same(f"{ours}/down{end}", f"{at}.experts.down_proj{end}", layers))
    return table
