"""RecurrentGemma: transformers' RecurrentGemmaForCausalLM. Griffin with Gemma's norms, and capped logits."""

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, linear, same
from jaxseq.convert.sources import _decoders, _family, _hybrids
from jaxseq.convert.sources.safari_hyena import taps

KINDS = {"RGLRU": "rglru", "Attention": "attention", "GeGLU": "geglu"}
NORMS = ("temporal_pre_norm", "channel_pre_norm")
TIED = True  # the default


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "recurrent_gemma"


def _scale(width: int) -> float:
    """The scale of the embedding: the root of the width, rounded to bfloat16 as in the released code."""
    return float(jnp.bfloat16(width**0.5))


def _layers(theirs: dict) -> list[_hybrids.Layer]:
    kinds = theirs.get("block_types") or ["recurrent", "recurrent", "attention"]
    labels = {"recurrent": "rglru", "attention": "attention"}
    chosen = [_fields.choice("hf/recurrent_gemma", {"block_types": kind}, "block_types", labels) for kind in kinds]
    return [(chosen[i % len(chosen)], "geglu") for i in range(theirs["num_hidden_layers"])]


def config(theirs: dict) -> ConfigDict:
    source, layers = "hf/recurrent_gemma", _layers(theirs)
    _fields.wanted(source, theirs, hidden_activation="gelu_pytorch_tanh")
    cfg = _family.frame(theirs, layers, tied=TIED)
    cfg.model.norm, cfg.model.embedding_scale = "rmsnorm_offset", _scale(theirs["hidden_size"])
    cfg.model.logit_cap = float(theirs.get("logits_soft_cap") or 0)
    if ("rglru", "geglu") in layers:
        hidden = theirs.get("lru_width") or theirs["hidden_size"]
        cfg.model.rglru = {"heads": theirs["num_attention_heads"], "hidden": hidden, "taps": theirs.get("conv1d_width", 4)}
    if ("attention", "geglu") in layers:
        own = {"bias": bool(theirs.get("attention_bias", False)), "output_bias": True}
        cfg.model.attention = _family.attention_fields(
            source, theirs | {"head_dim": None}, part=0.5, window=theirs.get("attention_window_size", 2048), **own
        )
    cfg.model.geglu = {"hidden": theirs["intermediate_size"] // 2, "bias": True}
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    width, cap = getattr(model, "width", 0), getattr(model, "logit_cap", 0.0)
    found = _hybrids.mixers(model, KINDS, norm="rmsnorm_offset", embedding_scale=_scale(width), logit_cap=cap)
    if not found or not cap:
        return None
    own = {type(mixer).__name__: mixer for pair in found for mixer in pair}
    rglru, attention, geglu = (own.get(kind) for kind in KINDS)
    if attention is None or not attention.window or not _decoders.has(attention, output_bias=True, head_size=None):
        return None
    if not _decoders.has(geglu, bias=True, activation="gelu_tanh"):
        return None
    if rglru is not None and not _decoders.has(rglru, heads=attention.heads, power=8.0):
        return None
    theirs = _family.fields(model, [(attention, None)] * len(found), "recurrent_gemma", "RecurrentGemmaForCausalLM", part=True)
    if theirs is None or attention.rope_scaling != "none":
        return None
    del theirs["hidden_act"]
    return theirs | {
        "block_types": ["recurrent" if type(token) is type(rglru) else "attention" for token, _ in found],
        "hidden_activation": "gelu_pytorch_tanh",
        "intermediate_size": 2 * geglu.features,
        "lru_width": rglru.features if rglru else model.width,
        "conv1d_width": rglru.taps if rglru else 4,
        "attention_window_size": attention.window,
        "attention_bias": attention.bias,
        "logits_soft_cap": cap,
    }


def aliases(theirs: dict) -> dict:
    return _family.aliases(theirs, tied=TIED)


def entries(theirs: dict) -> list[Entry]:
    layers, biases = _layers(theirs), "qkvo" if theirs.get("attention_bias") else "o"
    table = _family.outer(theirs, layers, NORMS, tied=TIED, last="final_norm")
    for place in _hybrids.places(layers):
        if place.label == "attention":
            table += _family.attention(theirs | {"head_dim": None}, place, biases, at="temporal_block")
        else:
            table += _rglru(place) if place.label == "rglru" else _family.gated(place, at="mlp_block", biased=True)
    return table


def _rglru(place: _hybrids.MixerPlace) -> list[Entry]:
    ours, names, layers = place.path, "model.layers.{layer}.temporal_block", place.layers
    table = [
        taps(f"{ours}/conv_kernel", f"{names}.conv_1d.weight", layers),
        same(f"{ours}/conv_bias", f"{names}.conv_1d.bias", layers),
        same(f"{ours}/Lambda", f"{names}.rg_lru.recurrent_param", layers),
    ]
    for name, linear_name in {"x": "linear_x", "y": "linear_y", "o": "linear_out"}.items():
        table.append(linear(f"{ours}/{name}/kernel", f"{names}.{linear_name}.weight", layers))
        table.append(same(f"{ours}/{name}/bias", f"{names}.{linear_name}.bias", layers))
    for name, gate in {"a": "recurrent_gate", "i": "input_gate"}.items():
        table.append(same(f"{ours}/{name}_kernel", f"{names}.rg_lru.{gate}_weight", layers))
        table.append(same(f"{ours}/{name}_bias", f"{names}.rg_lru.{gate}_bias", layers))
    return table
