"""Mixtral: transformers' MixtralForCausalLM. Files have one tensor per expert. In memory
transformers has one array per layer for gate and up of all experts. Both are read."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, linear
from jaxseq.convert.sources import _decoders, _family, _hybrids, _stacks

TOGETHER = "experts_together"  # added by `complete`: a layer's experts are one array


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "mixtral"


def complete(theirs: dict, names: set[str]) -> dict:
    return theirs | {TOGETHER: True} if any(name.endswith(".mlp.experts.gate_up_proj") for name in names) else theirs


def _layers(theirs: dict) -> list[_hybrids.Layer]:
    return [("attention", "moe")] * theirs["num_hidden_layers"]


def config(theirs: dict) -> ConfigDict:
    _fields.wanted("hf/mixtral", theirs, hidden_act="silu", attention_bias=False)
    cfg = _family.frame(theirs, _layers(theirs))
    cfg.model.attention = _family.attention_fields("hf/mixtral", theirs, theta=1e6, window=theirs.get("sliding_window"))
    cfg.model.moe = experts(theirs)
    return finish(cfg)


def experts(theirs: dict) -> dict[str, Any]:
    """The fields of the mixer moe."""
    return {
        "experts": theirs["num_local_experts"],
        "top_k": theirs["num_experts_per_tok"],
        "hidden": theirs["intermediate_size"],
        "balance_loss": float(theirs.get("router_aux_loss_coef", 0.001)),
        "jitter": float(theirs.get("router_jitter_noise", 0.0)),
    }


def described(moe: Any) -> dict[str, Any]:
    """Inverse of `experts`."""
    return {
        "intermediate_size": moe.features,
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "router_aux_loss_coef": moe.balance_loss,
        "router_jitter_noise": moe.jitter,
    }


def describe(model: nn.Module) -> dict | None:
    found = _stacks.mixers(model, ("Attention", "MoE"), norm="rmsnorm")
    if not found:
        return None
    ((attention, moe),) = found
    routing = {"gated": True, "bias": False, "normalize": True, "activation": "silu"}
    if attention.bias or not (_decoders.same_biases(attention) and _decoders.has(moe, **routing)):
        return None
    fields = _family.fields(model, found * model.layers, "mixtral", "MixtralForCausalLM")
    return fields and fields | {
        "head_dim": attention.head_size,
        "sliding_window": attention.window,
        **described(moe),
    }


aliases = _family.aliases


def _swap(x):
    return np.swapaxes(x, -1, -2)


def entries(theirs: dict) -> list[Entry]:
    layers, experts = _layers(theirs), theirs["num_local_experts"]
    token, channel = _hybrids.places(layers)
    moe = (together if theirs.get(TOGETHER) else one_by_one)(channel.path, "model.layers.{layer}", channel.layers, experts)
    return _family.outer(theirs, layers) + _family.attention(theirs, token) + moe


def together(ours: str, names: str, layers: Sequence[int] | None, experts: int) -> list[Entry]:
    """Router and experts with the names in transformers' memory; also for MiniMax."""

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


def one_by_one(ours: str, names: str, layers: Sequence[int] | None, experts: int) -> list[Entry]:
    """Router and experts with the names in files; also for MiniMax."""

    def matrices(name, theirs_name):
        theirs = tuple(f"{names}.block_sparse_moe.experts.{e}.{theirs_name}.weight" for e in range(experts))
        return Entry((f"{ours}/{name}",), theirs, lambda *w: (_swap(np.stack(w)),), lambda w: tuple(_swap(w)), layers)

    router = linear(f"{ours}/router/kernel", f"{names}.block_sparse_moe.gate.weight", layers)
    return [router, matrices("gate", "w1"), matrices("up", "w3"), matrices("down", "w2")]
