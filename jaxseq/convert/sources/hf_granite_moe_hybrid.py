"""Granite 4.0-H: transformers' GraniteMoeHybridForCausalLM, with or without experts."""

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, linear, split
from jaxseq.convert.sources import _decoders, _family, _hybrids, _mamba
from jaxseq.convert.sources.hf_mixtral import _swap

NAME = "hf/granite_moe_hybrid"
KINDS = {"Mamba2": "mamba2", "Attention": "attention", "SwiGLU": "swiglu", "SharedMoE": "shared_moe"}
LABELS = {"linear_attention": "mamba2", "mamba": "mamba2", "full_attention": "attention", "attention": "attention"}
ROUTING = {
    "router": "softmax", "gated": True, "bias": False, "shared_gate": False, "activation": "silu", "normalize": True,
    "jitter": 0.0, "z_loss": 0.0,
}  # fmt: skip
DEFAULTS = {
    "num_local_experts": 8, "num_experts_per_tok": 2, "shared_intermediate_size": 1024, "mamba_expand": 2, "mamba_d_head": "auto",
    "mamba_n_heads": 128, "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_conv": 4,
}  # fmt: skip
EXPERTS = "model.layers.{layer}.block_sparse_moe"


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "granitemoehybrid"


def rename(names: set[str]) -> dict:
    """transformers' names in memory differ from those in files."""
    pairs = {"experts.gate_up_proj": "input_linear.weight", "experts.down_proj": "output_linear.weight"}
    pairs = {
        f".block_sparse_moe.{a}": f".block_sparse_moe.{b}" for a, b in (pairs | {"router.weight": "router.layer.weight"}).items()
    }
    ending = {name: next((a for a in pairs if name.endswith(a)), None) for name in names}
    return {name.removesuffix(a) + pairs[a] if a else name: name for name, a in ending.items()}


def _layers(theirs: dict) -> list[_hybrids.Layer]:
    kinds = theirs.get("layer_types") or ["linear_attention"] * theirs["num_hidden_layers"]
    channel = "shared_moe" if theirs["num_local_experts"] else "swiglu"
    return [(_fields.choice(NAME, {"layer_types": kind}, "layer_types", LABELS), channel) for kind in kinds]


def _attention_fields(theirs: dict) -> dict:
    _decoders.plain_rotary(NAME, theirs)
    rotary = theirs.get("position_embedding_type") == "rope"
    own = {"rotary": rotary, "scale": float(theirs.get("attention_multiplier", 1.0))}
    return _family.attention_fields(NAME, theirs) | own | {"bias": bool(theirs.get("attention_bias", False))}


def _moe_fields(theirs: dict) -> dict:
    return {
        "experts": theirs["num_local_experts"],
        "top_k": theirs["num_experts_per_tok"],
        "hidden": theirs["intermediate_size"],
        "shared_hidden": theirs["shared_intermediate_size"],
        "balance_loss": float(theirs.get("router_aux_loss_coef", 0.001)),
    }


FIELDS = {  # of the mixers by label; each reads only the fields that its layers need
    "mamba2": lambda theirs: _mamba.hybrid_fields(NAME, theirs),
    "attention": _attention_fields,
    "swiglu": lambda theirs: {"hidden": theirs["shared_intermediate_size"]},
    "shared_moe": _moe_fields,
}


def config(theirs: dict) -> ConfigDict:
    _fields.wanted(NAME, theirs, hidden_act="silu")
    theirs = DEFAULTS | theirs
    layers = _layers(theirs)
    cfg = _family.frame(theirs, layers)
    cfg.model.embedding_scale = float(theirs.get("embedding_multiplier", 1.0))
    cfg.model.logit_scale = 1 / _fields.number(theirs, "logits_scaling", _fields.POSITIVE) if "logits_scaling" in theirs else 1.0
    if (scale := theirs.get("residual_multiplier", 1.0)) != 1:
        cfg.model.block, cfg.model.scaled = "scaled", {"scale": float(scale)}
    for label in dict.fromkeys(label for layer in layers for label in layer):
        cfg.model[label] = FIELDS[label](theirs)
    return finish(cfg)


def _found(model) -> tuple[list[tuple] | None, float]:
    """The mixers of each layer, and the factor of the residual connections."""
    free = {name: getattr(model, name, None) for name in ("embedding_scale", "logit_scale")}
    if found := _hybrids.mixers(model, KINDS, block="Scaled", norm="rmsnorm", **free):
        scales = {block.scale for block in model.blocks}
        return (found, scales.pop()) if len(scales) == 1 else (None, 1.0)
    return _hybrids.mixers(model, KINDS, norm="rmsnorm", **free), 1.0


def describe(model: nn.Module) -> dict | None:
    found, scale = _found(model)
    own = {type(mixer).__name__: mixer for pair in found or () for mixer in pair}
    mamba, attention, swiglu, moe = (own.get(kind) for kind in KINDS)
    if mamba is None or attention is None or mamba.eps != model.norm_eps or mamba.inner or (swiglu and moe):
        return None
    plain = {"window": None, "rotary_fraction": 1.0, "rope_scaling": "none", "head_size": None}
    if not _decoders.has(attention, **plain) or not _decoders.same_biases(attention):
        return None
    if moe is not None and not _decoders.has(moe, **ROUTING):
        return None
    turning = attention.clone(rotary=True, scale=None)
    theirs = _family.fields(model, [(turning, None)] * len(found), "granitemoehybrid", "GraniteMoeHybridForCausalLM")
    if theirs is None:
        return None
    size = theirs.pop("head_dim")
    theirs |= _mamba.hybrid_described(mamba) | {
        "mamba_expand": mamba.expand,
        "layer_types": ["linear_attention" if type(token) is type(mamba) else "full_attention" for token, _ in found],
        "attention_bias": attention.bias,
        "attention_multiplier": size**-0.5 if attention.scale is None else attention.scale,
        "position_embedding_type": "rope" if attention.rotary else None,
        "embedding_multiplier": model.embedding_scale,
        "logits_scaling": 1 / model.logit_scale,
        "residual_multiplier": scale,
        "num_local_experts": 0,
    }
    if moe is None:
        return theirs | {"shared_intermediate_size": swiglu.features}
    return theirs | {
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "intermediate_size": moe.features,
        "shared_intermediate_size": moe.shared_hidden or moe.features,
        "router_aux_loss_coef": moe.balance_loss,
    }


aliases = _family.aliases


def entries(theirs: dict) -> list[Entry]:
    theirs = DEFAULTS | theirs
    layers = _layers(theirs)
    table = _family.outer(theirs, layers)
    for place in _hybrids.places(layers):
        if place.label == "mamba2":
            table += _mamba.of_mamba2(place.path, "model.layers.{layer}.mamba", place.layers)
        elif place.label == "attention":
            table += _family.attention(theirs, place, "qkvo" if theirs.get("attention_bias") else "")
        elif place.label == "swiglu":
            table += _gated(theirs, place, ("gate", "up", "down"))
        else:
            table += _gated(theirs, place, ("shared_in", "shared_up", "shared_down")) + _experts(theirs, place)
    return table


def _gated(theirs: dict, place: _hybrids.MixerPlace, names: tuple[str, str, str]) -> list[Entry]:
    """The dense feed-forward, whose gate and up are one tensor; names: ours."""
    *ours, down = (f"{place.path}/{name}/kernel" for name in names)
    at, turned = "model.layers.{layer}.shared_mlp", (lambda w: w.T, lambda w: w.T)
    joined = split(ours, f"{at}.input_linear.weight", [theirs["shared_intermediate_size"]] * 2, place.layers, [turned] * 2)
    return [joined, linear(down, f"{at}.output_linear.weight", place.layers)]


def _experts(theirs: dict, place: _hybrids.MixerPlace) -> list[Entry]:
    ours, layers, turned = place.path, place.layers, (_swap, _swap)
    sizes = [theirs["intermediate_size"]] * 2
    return [
        linear(f"{ours}/router/kernel", f"{EXPERTS}.router.layer.weight", layers),
        split([f"{ours}/gate", f"{ours}/up"], f"{EXPERTS}.input_linear.weight", sizes, layers, [turned] * 2, axis=1),
        split([f"{ours}/down"], f"{EXPERTS}.output_linear.weight", [theirs["hidden_size"]], layers, [turned], axis=1),
    ]
