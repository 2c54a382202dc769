"""Mixtral: transformers' MixtralForCausalLM. A layer's experts lie in one array, gate and up together; in the published files
one by one, which is read as well."""

import numpy as np
from ml_collections import ConfigDict

from jaxseq.config import base, finish
from jaxseq.convert._table import Entry, linear, norm, same
from jaxseq.convert.sources import _decoders
from jaxseq.errors import UserError

APART = "experts_apart"  # what `complete` adds to their config: the experts are one by one


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "mixtral"


def complete(theirs: dict, names: set[str]) -> dict:
    return theirs | {APART: True} if any(".block_sparse_moe." in name for name in names) else theirs


def config(theirs: dict) -> ConfigDict:
    if not _decoders.plain_rotary(theirs) or theirs.get("hidden_act", "silu") != "silu":
        raise UserError("hf/mixtral reads models with plain rotary positions and silu; this one differs")
    cfg = base()
    cfg.model.stack = f"{theirs['num_hidden_layers']}*(attention moe)"
    cfg.model.width, cfg.model.vocab = theirs["hidden_size"], theirs["vocab_size"]
    cfg.model.norm_eps = theirs["rms_norm_eps"]
    cfg.model.tied = theirs.get("tie_word_embeddings", False)
    cfg.model.attention = {
        "heads": theirs["num_attention_heads"],
        "kv_heads": theirs.get("num_key_value_heads") or theirs["num_attention_heads"],
        "head_size": theirs.get("head_dim"),
        "theta": _decoders.theta(theirs, 1e6),
        "window": theirs.get("sliding_window"),
    }
    cfg.model.moe = {
        "experts": theirs["num_local_experts"],
        "top_k": theirs["num_experts_per_tok"],
        "hidden": theirs["intermediate_size"],
        "balance_loss": float(theirs.get("router_aux_loss_coef", 0.001)),
        "jitter": float(theirs.get("router_jitter_noise", 0.0)),
    }
    return finish(cfg)


def describe(model) -> dict | None:
    mixers = _decoders.mixers(model, "Residual", "Attention", "MoE", norm="rmsnorm")
    if not mixers:
        return None
    attention, moe = mixers
    wanted = _decoders.LLAMA | {"window": attention.window, "bias": False}
    routing = {"gated": True, "normalize": True, "activation": "silu"}
    if not (_decoders.has(attention, **wanted) and _decoders.same_biases(attention) and _decoders.has(moe, **routing)):
        return None
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "vocab_size": model.vocab,
        "hidden_size": model.width,
        "intermediate_size": moe.features,
        "num_hidden_layers": model.layers,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads or attention.heads,
        "head_dim": attention.head_size,
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "rope_theta": attention.theta,
        "rope_parameters": {"rope_theta": attention.theta, "rope_type": "default"},
        "sliding_window": attention.window,
        "router_aux_loss_coef": moe.balance_loss,
        "router_jitter_noise": moe.jitter,
        "tie_word_embeddings": model.tied,
    }


def aliases(theirs: dict) -> dict:
    return {"lm_head.weight": "model.embed_tokens.weight"} if theirs.get("tie_word_embeddings") else {}


def _swap(x):
    return np.swapaxes(x, -1, -2)


def entries(theirs: dict) -> list[Entry]:
    layers, width, heads = range(theirs["num_hidden_layers"]), theirs["hidden_size"], theirs["num_attention_heads"]
    kv_heads, size = theirs.get("num_key_value_heads") or heads, theirs.get("head_dim") or width // heads
    ours, names = "blocks_0", "model.layers.{layer}"
    table = [
        same("embedding", "model.embed_tokens.weight"),
        *norm("final_norm", "model.norm", bias=False),
        *norm(f"{ours}/norm_attention", f"{names}.input_layernorm", layers, bias=False),
        *norm(f"{ours}/norm_moe", f"{names}.post_attention_layernorm", layers, bias=False),
        linear(f"{ours}/attention/q/kernel", f"{names}.self_attn.q_proj.weight", layers, (width, heads, size)),
        linear(f"{ours}/attention/k/kernel", f"{names}.self_attn.k_proj.weight", layers, (width, kv_heads, size)),
        linear(f"{ours}/attention/v/kernel", f"{names}.self_attn.v_proj.weight", layers, (width, kv_heads, size)),
        linear(f"{ours}/attention/o/kernel", f"{names}.self_attn.o_proj.weight", layers, (heads, size, width), 2),
        *(_one_by_one if theirs.get(APART) else _together)(f"{ours}/moe", names, layers, theirs["num_local_experts"]),
    ]
    if not theirs.get("tie_word_embeddings"):
        table.append(same("head", "lm_head.weight"))
    return table


def _together(ours: str, names: str, layers, experts: int) -> list[Entry]:
    def forward(x):
        return tuple(np.split(_swap(x), 2, axis=-1))

    def backward(gate, up):
        return (_swap(np.concatenate([gate, up], axis=-1)),)

    down = f"{names}.mlp.experts.down_proj"
    return [
        linear(f"{ours}/router/kernel", f"{names}.mlp.gate.weight", layers),
        Entry((f"{ours}/gate", f"{ours}/up"), (f"{names}.mlp.experts.gate_up_proj",), forward, backward, layers),
        Entry((f"{ours}/down",), (down,), lambda x: (_swap(x),), lambda x: (_swap(x),), layers),
    ]


def _one_by_one(ours: str, names: str, layers, experts: int) -> list[Entry]:
    def matrices(name, theirs_name):
        theirs = tuple(f"{names}.block_sparse_moe.experts.{e}.{theirs_name}.weight" for e in range(experts))
        return Entry((f"{ours}/{name}",), theirs, lambda *w: (_swap(np.stack(w)),), lambda w: tuple(_swap(w)), layers)

    router = linear(f"{ours}/router/kernel", f"{names}.block_sparse_moe.gate.weight", layers)
    return [router, matrices("gate", "w1"), matrices("up", "w3"), matrices("down", "w2")]
