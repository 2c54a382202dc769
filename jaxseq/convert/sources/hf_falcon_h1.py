"""Falcon-H1 (0.5B to 34B): transformers' FalconH1ForCausalLM. Mamba-2 and attention in parallel, multipliers on all parts."""

from typing import Any

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, norm
from jaxseq.convert.sources import _decoders, _family, _hybrids, _mamba
from jaxseq.errors import UserError

NAME = "hf/falcon_h1"
KINDS = {"MupMamba2": "mup_mamba2", "MupAttention": "mup_attention", "MupSwiGLU": "mup_swiglu"}
DEFAULTS = {  # of transformers
    "intermediate_size": 14336, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "mamba_d_ssm": 1024, "mamba_n_heads": 128,
    "mamba_d_head": "auto", "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_conv": 4, "mamba_expand": 2,
    "mamba_rms_norm": False, "mamba_norm_before_gate": True,
}  # fmt: skip
MULTIPLIERS = {  # {ours: theirs} of the model and of its mixers
    "model": {"embedding_scale": "embedding_multiplier", "logit_scale": "lm_head_multiplier"},
    "mup_mamba2": {"in_multiplier": "ssm_in_multiplier", "out_multiplier": "ssm_out_multiplier"},
    "mup_attention": {
        "in_multiplier": "attention_in_multiplier", "key_multiplier": "key_multiplier",
        "out_multiplier": "attention_out_multiplier",
    },
}  # fmt: skip
LISTED = {  # {theirs: our field for each of its numbers}
    "ssm_multipliers": ("z_multiplier", "x_multiplier", "b_multiplier", "c_multiplier", "dt_multiplier"),
    "mlp_multipliers": ("gate_multiplier", "out_multiplier"),
}


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "falcon_h1"


def _layers(theirs: dict) -> list[_hybrids.Layer]:
    return [tuple(KINDS.values())] * theirs["num_hidden_layers"]


def _multipliers(theirs: dict, part: str) -> dict[str, float]:
    return {ours: float(theirs.get(name, 1.0)) for ours, name in MULTIPLIERS[part].items()}


def _listed(theirs: dict, name: str) -> dict[str, float]:
    fields = LISTED[name]
    values = theirs.get(name) or [1.0] * len(fields)
    if len(values) != len(fields) or not all(map(_fields.POSITIVE.holds, values)):
        raise UserError(f"{NAME} reads {len(fields)} positive numbers there, and this config has {name}={_fields.shown(values)}")
    return dict(zip(fields, map(float, values), strict=True))


def _described(part: Any, kind: str) -> dict[str, float]:
    return {name: getattr(part, ours) for ours, name in MULTIPLIERS[kind].items()}


def config(theirs: dict) -> ConfigDict:
    _fields.wanted(NAME, theirs, hidden_act="silu", mlp_bias=False, projectors_bias=False)
    theirs = DEFAULTS | theirs
    if theirs["mamba_rms_norm"]:
        _fields.wanted(NAME, theirs, mamba_norm_before_gate=False)
    cfg = _family.frame(theirs, _layers(theirs))
    cfg.model.block = "semi_parallel"
    cfg.model.update(_multipliers(theirs, "model"))
    mamba = _mamba.hybrid_fields(NAME, theirs) | {"normed": theirs["mamba_rms_norm"]}
    attention = _family.attention_fields(NAME, theirs, bias=bool(theirs.get("attention_bias", False)))
    cfg.model.mup_mamba2 = mamba | _multipliers(theirs, "mup_mamba2") | _listed(theirs, "ssm_multipliers")
    cfg.model.mup_attention = attention | _multipliers(theirs, "mup_attention")
    cfg.model.mup_swiglu = {"hidden": theirs["intermediate_size"]} | _listed(theirs, "mlp_multipliers")
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    free = {name: getattr(model, name, None) for name in MULTIPLIERS["model"]}
    found = _hybrids.mixers(model, KINDS, block="SemiParallel", size=len(KINDS), norm="rmsnorm", **free)
    if not found or any([type(mixer).__name__ for mixer in layer] != list(KINDS) for layer in found):
        return None
    mamba, attention, swiglu = found[0]
    if attention.window or not _decoders.same_biases(attention) or (mamba.normed and mamba.eps != model.norm_eps):
        return None
    theirs = _family.fields(model, [(attention,)] * len(found), "falcon_h1", "FalconH1ForCausalLM")
    if theirs is None:
        return None
    theirs |= _described(model, "model") | _described(mamba, "mup_mamba2") | _described(attention, "mup_attention")
    return theirs | _mamba.hybrid_described(mamba) | {
        "mamba_d_ssm": mamba.inner_size,
        "mamba_expand": mamba.expand,
        "mamba_rms_norm": mamba.normed,
        "mamba_norm_before_gate": False,
        "ssm_multipliers": [getattr(mamba, name) for name in LISTED["ssm_multipliers"]],
        "attention_bias": attention.bias,
        "intermediate_size": swiglu.features,
        "mlp_multipliers": [getattr(swiglu, name) for name in LISTED["mlp_multipliers"]],
    }  # fmt: skip


aliases = _family.aliases


def entries(theirs: dict) -> list[Entry]:
    theirs, names = DEFAULTS | theirs, "model.layers.{layer}"
    mamba, attention, swiglu = _hybrids.places(_layers(theirs))
    table = _family.outer(theirs, (), last="final_layernorm")
    for place, name in ((mamba, "input_layernorm"), (swiglu, "pre_ff_layernorm")):  # attention shares the norm of mamba2
        table += norm(place.norm, f"{names}.{name}", place.layers, bias=False)
    table += _mamba.of_mamba2(mamba.path, f"{names}.mamba", mamba.layers, normed=theirs["mamba_rms_norm"])
    table += _family.attention(theirs, attention, "qkvo" if theirs.get("attention_bias") else "")
    return table + _family.gated(swiglu, "feed_forward")
