"""Kimi Linear (48B-A3B): transformers' KimiLinearForCausalLM."""

import re
from collections.abc import Iterable

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import base, finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, linear, norm, reshaped, same
from jaxseq.convert.sources import _decoders, _deepseek, _family, _hybrids

KINDS = {"KimiDeltaAttention": "kda", "LatentAttention": "mla", "SwiGLU": "swiglu", "SharedMoE": "shared_moe"}
DELTA = {"value_heads": None, "value_size": None, "negative": False, "gate": "sigmoid", "rank": None}


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "kimi_linear"


def rename(names: set[str]) -> dict:
    """A dense feed-forward is called `block_sparse_moe` by transformers and `mlp` by the authors."""
    dense = r"block_sparse_moe\.(gate|up|down)_proj\."
    return {re.sub(dense, r"mlp.\1_proj.", name): name for name in names}


def _get(theirs: dict, *names):
    """The value of the first of these names that exists; files of the authors and of transformers differ."""
    return next(theirs[name] for name in names if theirs.get(name) is not None or name == names[-1])


def complete(theirs: dict, names: Iterable[str]) -> dict:
    """Adds the fields that transformers' config class computes from the authors' config.json."""
    theirs, own, count = _deepseek.complete(theirs, names), theirs.get("linear_attn_config") or {}, theirs["num_hidden_layers"]
    theirs = theirs | {
        "linear_head_dim": own.get("head_dim", theirs.get("linear_head_dim", 128)),
        "linear_num_heads": own.get("num_heads", theirs.get("linear_num_heads", 32)),
        "linear_conv_kernel_dim": own.get("short_conv_kernel_size", theirs.get("linear_conv_kernel_dim", 4)),
    }
    if theirs.get("layer_types") is None:
        full = [i - 1 for i in own["full_attn_layers"]] if "full_attn_layers" in own else range(4, count, 4)
        theirs["layer_types"] = ["full_attention" if i in full else "linear_attention" for i in range(count)]
    if theirs.get("mlp_layer_types") is None:
        dense = theirs.get("first_k_dense_replace", 1)
        theirs["mlp_layer_types"] = ["dense" if i < dense else "sparse" for i in range(count)]
    return theirs


def _layers(theirs: dict) -> list[_hybrids.Layer]:
    token, channel = {"linear_attention": "kda", "full_attention": "mla"}, {"dense": "swiglu", "sparse": "shared_moe"}
    return [
        (
            _fields.choice("hf/kimi_linear", {"layer_types": kind}, "layer_types", token),
            _fields.choice("hf/kimi_linear", {"mlp_layer_types": mlp}, "mlp_layer_types", channel),
        )
        for kind, mlp in zip(theirs["layer_types"], theirs["mlp_layer_types"], strict=True)
    ]


def _experts(theirs: dict) -> int:
    return _get(theirs, "num_experts", "num_local_experts")


def _kda_fields(theirs: dict) -> dict:
    return {
        "heads": theirs["linear_num_heads"],
        "head_size": theirs["linear_head_dim"],
        "taps": theirs["linear_conv_kernel_dim"],
        "eps": theirs["rms_norm_eps"],
    }


def _moe_fields(theirs: dict) -> dict:
    return {
        "experts": _experts(theirs),
        "top_k": _get(theirs, "num_experts_per_token", "num_experts_per_tok"),
        "hidden": theirs["moe_intermediate_size"],
        "shared_hidden": _get(theirs, "num_shared_experts", "n_shared_experts") * theirs["moe_intermediate_size"],
        "router": "sigmoid",
        "groups": _get(theirs, "num_expert_group", "n_group"),
        "top_groups": theirs.get("topk_group", 1),
        "scale": float(theirs["routed_scaling_factor"]),
        "normalize": bool(_get(theirs, "moe_renormalize", "norm_topk_prob")),
        "balance_loss": 0.0,
    }


FIELDS = {  # of the mixers by label; each reads only the fields that its layers need
    "kda": _kda_fields,
    "mla": lambda theirs: _deepseek.mla_fields(theirs) | {"rotary": False},
    "swiglu": lambda theirs: {"hidden": theirs["intermediate_size"]},
    "shared_moe": _moe_fields,
}


def config(theirs: dict) -> ConfigDict:
    source = "hf/kimi_linear"
    _decoders.plain_rotary(source, theirs)
    _fields.wanted(source, theirs, hidden_act="silu", attention_bias=False)
    _fields.wanted(source, theirs, moe_router_activation_func="sigmoid", mla_use_nope=True)
    theirs = complete(theirs, ()) if "mlp_layer_types" not in theirs else theirs
    cfg, layers = base(), _layers(theirs)
    cfg.model.stack = _hybrids.stack(layers)
    cfg.model.width, cfg.model.vocab = theirs["hidden_size"], theirs["vocab_size"]
    cfg.model.norm_eps, cfg.model.tied = theirs["rms_norm_eps"], bool(theirs.get("tie_word_embeddings", False))
    for label in dict.fromkeys(label for layer in layers for label in layer):
        cfg.model[label] = FIELDS[label](theirs)
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    found = _hybrids.mixers(model, KINDS, norm="rmsnorm")
    if not found:
        return None
    own = {type(mixer).__name__: mixer for pair in found for mixer in pair}
    kda, mla, swiglu, moe = (own.get(kind) for kind in KINDS)
    if kda is None or not _decoders.has(kda, **DELTA, eps=model.norm_eps):
        return None
    if mla is not None and not _decoders.has(mla, rotary=False, eps=1e-6):
        return None
    routing = {"router": "sigmoid", "gated": True, "bias": False, "shared_gate": False, "activation": "silu"}
    if moe is not None and not _decoders.has(moe, **routing):
        return None
    theirs = {
        "architectures": ["KimiLinearForCausalLM"],
        "model_type": "kimi_linear",
        "vocab_size": model.vocab,
        "hidden_size": model.width,
        "num_hidden_layers": len(found),
        "layer_types": ["linear_attention" if type(token) is type(kda) else "full_attention" for token, _ in found],
        "mlp_layer_types": ["dense" if type(mlp).__name__ == "SwiGLU" else "sparse" for _, mlp in found],
        "linear_num_heads": kda.heads,
        "linear_head_dim": kda.head_size or model.width // kda.heads,
        "linear_conv_kernel_dim": kda.taps,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tied,
        "pad_token_id": None,  # its default may be outside the vocabulary
        "intermediate_size": swiglu.features if swiglu else 4 * model.width,
    }
    theirs |= _deepseek.mla_described(mla) if mla else {}
    if moe is not None:
        hidden = moe.shared_hidden or moe.features
        if hidden % moe.features:
            return None
        theirs |= {
            "num_experts": moe.experts,
            "num_experts_per_token": moe.top_k,
            "moe_intermediate_size": moe.features,
            "num_shared_experts": hidden // moe.features,
            "num_expert_group": moe.groups,
            "topk_group": moe.top_groups,
            "routed_scaling_factor": moe.scale,
            "moe_renormalize": moe.normalize,
        }
    return theirs


def aliases(theirs: dict) -> dict:
    return {"lm_head.weight": "model.embed_tokens.weight"} if theirs.get("tie_word_embeddings") else {}


def entries(theirs: dict) -> list[Entry]:
    theirs = complete(theirs, ()) if "mlp_layer_types" not in theirs else theirs
    layers = _layers(theirs)
    table = [same("embedding", "model.embed_tokens.weight"), *norm("final_norm", "model.norm", bias=False)]
    table += _hybrids.norms(layers, ("input_layernorm", "post_attention_layernorm"))
    if not theirs.get("tie_word_embeddings"):
        table.append(same("head", "lm_head.weight"))
    for place in _hybrids.places(layers):
        if place.label == "shared_moe":
            table += _deepseek.moe(theirs, place, _experts(theirs), "block_sparse_moe", ("w1", "w3", "w2"))
        elif place.label == "swiglu":
            table += _family.gated(place)
        else:
            table += {"kda": _kda, "mla": _deepseek.mla}[place.label](theirs, place)
    return table


def _kda(theirs: dict, place: _hybrids.MixerPlace) -> list[Entry]:
    ours, at, layers = place.path, "model.layers.{layer}.self_attn", place.layers
    width, heads, size = theirs["hidden_size"], theirs["linear_num_heads"], theirs["linear_head_dim"]
    together = theirs.get(_deepseek.TOGETHER)  # in transformers' memory: one convolution, and a module for the forget gate
    gate = f"{at}.forget_gate" if together else at
    table = [linear(f"{ours}/{n}/kernel", f"{at}.{n}_proj.weight", layers, (width, heads, size)) for n in "qkv"]
    names = ("conv1d",) if together else ("q_conv1d", "k_conv1d", "v_conv1d")
    convolutions = [f"{at}.{name}.weight" for name in names]
    table += [
        _hybrids.convolutions(f"{ours}/conv_kernel", convolutions, [3 // len(names) * heads * size] * len(names), layers),
        linear(f"{ours}/f_a/kernel", f"{gate}.f_a_proj.weight", layers),
        linear(f"{ours}/f_b/kernel", f"{gate}.f_b_proj.weight", layers, (size, heads, size)),
        reshaped(f"{ours}/dt_bias", f"{gate}.dt_bias", (heads, size), (-1,), layers),
        reshaped(f"{ours}/A_log", f"{gate}.A_log", (heads,), (1, 1, heads, 1), layers),
        linear(f"{ours}/beta/kernel", f"{at}.b_proj.weight", layers),
        linear(f"{ours}/g_a/kernel", f"{at}.g_a_proj.weight", layers),
        linear(f"{ours}/g_b/kernel", f"{at}.g_b_proj.weight", layers, (size, heads, size)),
        same(f"{ours}/norm_scale", f"{at}.o_norm.weight", layers),
        linear(f"{ours}/o/kernel", f"{at}.o_proj.weight", layers, (heads, size, width), 2),
    ]
    return table
