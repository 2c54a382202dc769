"""OLMo Hybrid (7B): transformers' OlmoHybridForCausalLM. Norms before Gated DeltaNet and its MLP, after attention and its MLP."""

import math
import re
from collections.abc import Mapping

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, linear, same
from jaxseq.convert.sources import _decoders, _family, _hybrids


def _channel(mixer) -> str:
    return "swiglu:attention" if mixer.name.startswith("swiglu:attention") else "swiglu"


LABELS = {"linear_attention": ("gdn", "swiglu"), "full_attention": ("normed_attention", "swiglu:attention")}
KINDS = {"GatedDeltaNet": "gdn", "NormedAttention": "normed_attention", "SwiGLU": _channel}
NORMS = {  # transformers writes the first three tensors of a layer under two names, whatever their names in memory
    "gdn": "attention_layer_norm",
    "swiglu": "feedforward_layer_norm",
    "normed_attention": "feedforward_layer_norm",
    "swiglu:attention": "post_feedforward_layernorm",
}
EPS = 1e-5  # of the norm of Gated DeltaNet
JOINED, ROWS = "convolutions_joined", "rows_of_convolutions"  # what `complete` adds to their config


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "olmo_hybrid"


def rename(names: set[str]) -> dict:
    pairs = ((".input_layernorm.", ".attention_layer_norm."), (".post_attention_layernorm.", ".feedforward_layer_norm."))
    return {name.replace(*pairs[0]).replace(*pairs[1]): name for name in names}


def complete(theirs: dict, tensors: Mapping) -> dict:
    """transformers has one convolution for q, k and v in memory. It writes equal parts, even if q, k and v differ in size."""
    if any(name.endswith(".linear_attn.conv1d.weight") for name in tensors):
        return theirs | {JOINED: True}
    first = next((name for name in tensors if name.endswith(".q_conv1d.weight")), None)
    if first is None or not hasattr(tensors, "shape"):
        return theirs
    names = [re.sub(r"\.q_conv1d\.", f".{letter}_conv1d.", first) for letter in "qkv"]
    return theirs | {ROWS: [tensors.shape(name)[0] for name in names]} if set(names) <= set(tensors) else theirs


def _layers(theirs: dict) -> list[_hybrids.Layer]:
    count = theirs["num_hidden_layers"]
    kinds = theirs.get("layer_types") or ["linear_attention" if (i + 1) % 4 else "full_attention" for i in range(count)]
    return [_fields.choice("hf/olmo_hybrid", {"layer_types": kind}, "layer_types", LABELS) for kind in kinds]


def _rotary(theirs: dict) -> bool:
    return (theirs.get("rope_parameters") or {}).get("rope_theta", 0) is not None


def _attention_fields(theirs: dict) -> dict:
    own = {"joint": True, "eps": theirs["rms_norm_eps"], "rotary": _rotary(theirs)}
    return _family.attention_fields("hf/olmo_hybrid", theirs, bias=bool(theirs.get("attention_bias", False)), **own)


def _gdn_fields(theirs: dict) -> dict:
    heads = theirs.get("linear_num_key_heads") or theirs["num_attention_heads"]
    size = theirs.get("linear_key_head_dim") or int(0.75 * theirs["hidden_size"] / heads)
    return {
        "heads": heads,
        "value_heads": theirs.get("linear_num_value_heads") or theirs["num_attention_heads"],
        "head_size": size,
        "value_size": theirs.get("linear_value_head_dim") or 2 * size,
        "taps": theirs.get("linear_conv_kernel_dim", 4),
        "negative": bool(theirs.get("linear_allow_neg_eigval", True)),
        "eps": EPS,
    }


def config(theirs: dict) -> ConfigDict:
    _fields.wanted("hf/olmo_hybrid", theirs, hidden_act="silu")
    layers = _layers(theirs)
    cfg, swiglu = _family.frame(theirs, layers), {"hidden": theirs["intermediate_size"]}
    cfg.model.block = "output_norm"
    cfg.model.output_norm = {"pre": "gdn swiglu"}
    for token, channel in set(layers):
        cfg.model[token] = (_gdn_fields if token == "gdn" else _attention_fields)(theirs)
        cfg.model[channel] = swiglu
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    found = _hybrids.mixers(model, KINDS, block="OutputNorm", norm="rmsnorm")
    if not found or any(set(block.pre.split()) != {"gdn", "swiglu"} for block in model.blocks):
        return None
    own = {type(token).__name__: token for token, _ in found}
    gdn, attention = own.get("GatedDeltaNet"), own.get("NormedAttention")
    wanted = {"gated": False, "joint": True, "norm": "rmsnorm", "eps": model.norm_eps, "window": None, "head_size": None}
    if attention is None or not _decoders.has(attention, **wanted) or not _decoders.same_biases(attention):
        return None
    kinds = ["linear_attention" if type(token) is type(gdn) else "full_attention" for token, _ in found]
    paired = all(_channel(channel) == LABELS[kind][1] for kind, (_, channel) in zip(kinds, found, strict=True))
    hidden = {channel.features for _, channel in found}
    if gdn is None or not paired or len(hidden) > 1 or not _decoders.has(gdn, gate="silu", eps=EPS):
        return None
    turning = attention.clone(rotary=True)
    theirs = _family.fields(model, [(turning, None)] * len(found), "olmo_hybrid", "OlmoHybridForCausalLM")
    if theirs is None:
        return None
    value_heads, key_size, value_size = gdn.sizes()
    del theirs["head_dim"]
    theirs |= {} if attention.rotary else {"rope_theta": None, "rope_parameters": {"rope_theta": None, "rope_type": "default"}}
    return theirs | {
        "layer_types": kinds,
        "attention_bias": attention.bias,
        "intermediate_size": hidden.pop(),
        "linear_num_key_heads": gdn.heads,
        "linear_num_value_heads": value_heads,
        "linear_key_head_dim": key_size,
        "linear_value_head_dim": value_size,
        "linear_conv_kernel_dim": gdn.taps,
        "linear_allow_neg_eigval": gdn.negative,
        "pad_token_id": None,  # its default may be outside the vocabulary
    }


aliases = _family.aliases


def entries(theirs: dict) -> list[Entry]:
    layers, biases = _layers(theirs), "qkvo" if theirs.get("attention_bias") else ""
    table = _family.outer(theirs, layers, NORMS)
    for place in _hybrids.places(layers):
        if place.label == "gdn":
            table += _gdn(theirs, place)
        elif place.label == "normed_attention":
            table += _family.attention(theirs, place, biases, ("q_norm", "k_norm"))
        else:
            table += _family.gated(place)
    return table


def _gdn(theirs: dict, place: _hybrids.MixerPlace) -> list[Entry]:
    ours, names, layers, own = place.path, "model.layers.{layer}.linear_attn", place.layers, _gdn_fields(theirs)
    width, keys = theirs["hidden_size"], (own["heads"], own["head_size"])
    values = (own["value_heads"], own["value_size"])
    rows = [math.prod(keys), math.prod(keys), math.prod(values)]
    parts = ["conv1d"] if theirs.get(JOINED) else ["q_conv1d", "k_conv1d", "v_conv1d"]
    sizes = [sum(rows)] if theirs.get(JOINED) else theirs.get(ROWS, rows)
    table = [
        linear(f"{ours}/{name}/kernel", f"{names}.{name}_proj.weight", layers, (width, *shape))
        for name, shape in {"q": keys, "k": keys, "v": values, "g": values}.items()
    ]
    return table + [
        _hybrids.convolutions(f"{ours}/conv_kernel", [f"{names}.{part}.weight" for part in parts], sizes, layers),
        linear(f"{ours}/a/kernel", f"{names}.a_proj.weight", layers),
        linear(f"{ours}/beta/kernel", f"{names}.b_proj.weight", layers),
        same(f"{ours}/A_log", f"{names}.A_log", layers),
        same(f"{ours}/dt_bias", f"{names}.dt_bias", layers),
        same(f"{ours}/norm_scale", f"{names}.o_norm.weight", layers),
        linear(f"{ours}/o/kernel", f"{names}.o_proj.weight", layers, (*values, width), 2),
    ]
