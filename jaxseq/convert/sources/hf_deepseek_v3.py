"""DeepSeek-V3 and R1: transformers' DeepseekV3ForCausalLM. Latent attention, and experts in all but the first layers."""

from typing import Any

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry
from jaxseq.convert.sources import _decoders, _deepseek, _family, _hybrids, _rope

KINDS = {"LatentAttention": "mla", "SwiGLU": "swiglu", "SharedMoE": "shared_moe"}
ROUTING = {"router": "sigmoid", "gated": True, "bias": False, "shared_gate": False, "activation": "silu"}
NAMES = ("gate_proj", "up_proj", "down_proj")  # of an expert in files


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "deepseek_v3"


def rename(names: set[str]) -> dict:
    """Published files end with a layer that predicts a second token; it is left out, as in transformers."""
    extra = tuple(name.removesuffix("eh_proj.weight") for name in names if name.endswith(".eh_proj.weight"))
    return {name: name for name in names if not extra or not name.startswith(extra)}


complete = _deepseek.complete


def _layers(theirs: dict) -> list[_hybrids.Layer]:
    count, dense = theirs["num_hidden_layers"], theirs.get("first_k_dense_replace", 3)
    return [("mla", "swiglu" if i < dense else "shared_moe") for i in range(count)]


def _mla_fields(theirs: dict) -> dict:
    source, own, given = "hf/deepseek_v3", _deepseek.mla_fields(theirs), _rope.settings("hf/deepseek_v3", theirs)
    _fields.wanted(source, {"mscale / mscale_all_dim": _rope.amplitude(given)}, **{"mscale / mscale_all_dim": 1.0})
    heat = _rope.temperature(given.get("factor", 1.0), given.get("mscale_all_dim", 0.0))
    size = own["head_size"] + own["rotary_size"]
    return own | _rope.fields(source, theirs) | {
        "interleaved": bool(theirs.get("rope_interleave", True)),
        "scale": None if heat == 1 else heat * heat * size**-0.5,
    }  # fmt: skip


def _moe_fields(theirs: dict) -> dict:
    return {
        "experts": theirs["n_routed_experts"],
        "top_k": theirs["num_experts_per_tok"],
        "hidden": theirs["moe_intermediate_size"],
        "shared_hidden": theirs["n_shared_experts"] * theirs["moe_intermediate_size"],
        "router": "sigmoid",
        "groups": theirs.get("n_group") or 1,
        "top_groups": theirs.get("topk_group") or 1,
        "scale": float(theirs["routed_scaling_factor"]),
        "normalize": bool(theirs.get("norm_topk_prob", True)),
        "balance_loss": 0.0,
    }


FIELDS = {  # of the mixers by label; each reads only the fields that its layers need
    "mla": _mla_fields,
    "swiglu": lambda theirs: {"hidden": theirs["intermediate_size"]},
    "shared_moe": _moe_fields,
}


def config(theirs: dict) -> ConfigDict:
    _fields.wanted("hf/deepseek_v3", theirs, hidden_act="silu", attention_bias=False, moe_layer_freq=1)
    _fields.wanted("hf/deepseek_v3", theirs, scoring_func="sigmoid", topk_method="noaux_tc")
    layers = _layers(theirs)
    cfg = _family.frame(theirs, layers)
    for label in dict.fromkeys(label for layer in layers for label in layer):
        cfg.model[label] = FIELDS[label](theirs)
    return finish(cfg)


def _rotary(mla: Any) -> dict | None:
    """`rope_parameters` of their config; None if it has none for this mixer."""
    found = _rope.parameters(mla)
    if found["rope_type"] != "yarn":
        return found if mla.scale is None else None
    if mla.scale is None:
        return found | {"attention_factor": 1.0}
    heat = (mla.scale * (mla.head_size + mla.rotary_size) ** 0.5) ** 0.5
    weight = round((heat - 1) / (_rope.temperature(mla.rope_factor) - 1), 9)
    return found | {"mscale": weight, "mscale_all_dim": weight}


def describe(model: nn.Module) -> dict | None:
    found = _hybrids.mixers(model, KINDS, norm="rmsnorm")
    if not found:
        return None
    own = {type(mixer).__name__: mixer for pair in found for mixer in pair}
    mla, swiglu, moe = (own.get(kind) for kind in KINDS)
    dense = [type(channel) is type(swiglu) for _, channel in found]
    rotary = _rotary(mla)
    if rotary is None or not _decoders.has(mla, rotary=True, eps=1e-6) or sorted(dense, reverse=True) != dense:
        return None
    if moe is not None and not _decoders.has(moe, **ROUTING):
        return None
    theirs = _deepseek.mla_described(mla) | {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "vocab_size": model.vocab,
        "hidden_size": model.width,
        "num_hidden_layers": len(found),
        "first_k_dense_replace": sum(dense),
        "intermediate_size": swiglu.features if swiglu else 4 * model.width,
        "num_nextn_predict_layers": 0,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "rope_theta": mla.theta,
        "rope_parameters": rotary,
        "rope_interleave": mla.interleaved,
        "tie_word_embeddings": model.tied,
    }
    if moe is None:
        return theirs
    hidden = moe.shared_hidden or moe.features
    return None if hidden % moe.features else theirs | {
        "n_routed_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.features,
        "n_shared_experts": hidden // moe.features,
        "n_group": moe.groups,
        "topk_group": moe.top_groups,
        "routed_scaling_factor": moe.scale,
        "norm_topk_prob": moe.normalize,
    }  # fmt: skip


aliases = _family.aliases


def entries(theirs: dict) -> list[Entry]:
    layers = _layers(theirs)
    table = _family.outer(theirs, layers)
    for place in _hybrids.places(layers):
        if place.label == "shared_moe":
            table += _deepseek.moe(theirs, place, theirs["n_routed_experts"], "mlp", NAMES)
        else:
            table += _deepseek.mla(theirs, place) if place.label == "mla" else _family.gated(place)
    return table
