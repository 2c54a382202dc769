"""Shared by the sources of DeepSeek-V3 and Kimi Linear: latent attention, and mixtures of routed and shared experts.

Files have one tensor per expert. In memory transformers has one array per layer for gate and up of all experts. Both are read.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxseq.convert._table import Entry, linear, norm, same
from jaxseq.convert.sources import _hybrids
from jaxseq.convert.sources.hf_mixtral import _swap

TOGETHER = "experts_together"  # added by `complete`: a layer's experts are one array


def complete(theirs: dict, names: Iterable[str]) -> dict:
    return theirs | {TOGETHER: True} if any(name.endswith(".mlp.experts.gate_up_proj") for name in names) else theirs


def mla_fields(theirs: dict) -> dict:
    return {
        "heads": theirs["num_attention_heads"],
        "kv_rank": theirs["kv_lora_rank"],
        "query_rank": theirs.get("q_lora_rank"),
        "head_size": theirs["qk_nope_head_dim"],
        "rotary_size": theirs["qk_rope_head_dim"],
        "value_size": theirs["v_head_dim"],
    }


def mla_described(mla: Any) -> dict:
    return {
        "num_attention_heads": mla.heads,
        "num_key_value_heads": mla.heads,
        "kv_lora_rank": mla.kv_rank,
        "q_lora_rank": mla.query_rank,
        "qk_nope_head_dim": mla.head_size,
        "qk_rope_head_dim": mla.rotary_size,
        "v_head_dim": mla.value_size or mla.head_size,
    }


def mla(theirs: dict, place: _hybrids.MixerPlace) -> list[Entry]:
    ours, names, layers = place.path, "model.layers.{layer}.self_attn", place.layers
    own = mla_fields(theirs)
    width, heads, rank = theirs["hidden_size"], own["heads"], own["kv_rank"]
    keys, values, size = own["head_size"], own["value_size"], own["head_size"] + own["rotary_size"]
    table = [
        linear(f"{ours}/kv_down/kernel", f"{names}.kv_a_proj_with_mqa.weight", layers),
        *norm(f"{ours}/kv_norm", f"{names}.kv_a_layernorm", layers, bias=False),
        linear(f"{ours}/o/kernel", f"{names}.o_proj.weight", layers, (heads, values, width), 2),
    ]
    if own["query_rank"]:
        table.append(linear(f"{ours}/q_down/kernel", f"{names}.q_a_proj.weight", layers))
        table += norm(f"{ours}/q_norm", f"{names}.q_a_layernorm", layers, bias=False)
        table.append(linear(f"{ours}/q/kernel", f"{names}.q_b_proj.weight", layers, (own["query_rank"], heads, size)))
    else:
        table.append(linear(f"{ours}/q/kernel", f"{names}.q_proj.weight", layers, (width, heads, size)))

    def forward(w):
        up = np.moveaxis(w.reshape(heads, keys + values, rank), 2, 0)
        return up[:, :, :keys], up[:, :, keys:]

    def backward(k_up, v_up):
        return (np.moveaxis(np.concatenate([k_up, v_up], axis=2), 0, 2).reshape(-1, rank),)

    return [*table, Entry((f"{ours}/k_up", f"{ours}/v_up"), (f"{names}.kv_b_proj.weight",), forward, backward, layers)]


def moe(theirs: dict, place: _hybrids.MixerPlace, experts: int, prefix: str, names: tuple[str, str, str]) -> list[Entry]:
    """prefix: of tensor names in files, "mlp" or "block_sparse_moe"; names: those of gate, up and down of an expert."""
    ours, layers, together = place.path, place.layers, theirs.get(TOGETHER)
    at = f"model.layers.{{layer}}.{'mlp' if together else prefix}"
    table = [
        linear(f"{ours}/router/kernel", f"{at}.gate.weight", layers),
        same(f"{ours}/router_bias", f"{at}.gate.e_score_correction_bias", layers),
    ]
    for name, shared in {"shared_in": "gate", "shared_up": "up", "shared_down": "down"}.items():
        table.append(linear(f"{ours}/{name}/kernel", f"{at}.shared_experts.{shared}_proj.weight", layers))
    return table + (together_experts(ours, at, layers) if together else single_experts(ours, at, layers, experts, names))


def together_experts(ours: str, at: str, layers: Sequence[int] | None) -> list[Entry]:
    def forward(x):
        return tuple(np.split(_swap(x), 2, axis=-1))

    def backward(gate, up):
        return (_swap(np.concatenate([gate, up], axis=-1)),)

    return [
        Entry((f"{ours}/gate", f"{ours}/up"), (f"{at}.experts.gate_up_proj",), forward, backward, layers),
        Entry((f"{ours}/down",), (f"{at}.experts.down_proj",), lambda x: (_swap(x),), lambda x: (_swap(x),), layers),
    ]


def single_experts(ours: str, at: str, layers: Sequence[int] | None, experts: int, names: tuple[str, str, str]) -> list[Entry]:
    def matrices(name, theirs_name):
        theirs = tuple(f"{at}.experts.{e}.{theirs_name}.weight" for e in range(experts))
        return Entry((f"{ours}/{name}",), theirs, lambda *w: (_swap(np.stack(w)),), lambda w: tuple(_swap(w)), layers)

    return [matrices(*pair) for pair in zip(("gate", "up", "down"), names, strict=True)]
