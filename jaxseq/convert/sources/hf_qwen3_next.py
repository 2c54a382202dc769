"""Qwen3-Next (80B-A3B): transformers' Qwen3NextForCausalLM. Norms multiply by 1 + weight, except that of Gated DeltaNet."""

import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, linear, same
from jaxseq.convert.sources import _decoders, _deepseek, _family, _hybrids
from jaxseq.convert.sources.safari_hyena import taps

KINDS = {"GatedDeltaNet": "gdn", "NormedAttention": "normed_attention", "SwiGLU": "swiglu", "SharedMoE": "shared_moe"}
ROUTING = {
    "router": "softmax", "gated": True, "bias": False, "shared_gate": True, "activation": "silu", "jitter": 0.0, "z_loss": 0.0,
}  # fmt: skip


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "qwen3_next"


def rename(names: set[str]) -> dict:
    """Published files have a module that predicts a second token; it is left out, as in transformers."""
    return {name: name for name in names if not name.startswith("mtp.")}


complete = _deepseek.complete


def _layers(theirs: dict) -> list[_hybrids.Layer]:
    count, kinds = theirs["num_hidden_layers"], theirs.get("layer_types")
    if kinds is None:
        every = theirs.get("full_attention_interval", 4)
        kinds = ["linear_attention" if (i + 1) % every else "full_attention" for i in range(count)]
    labels = {"linear_attention": "gdn", "full_attention": "normed_attention"}
    token = [_fields.choice("hf/qwen3_next", {"layer_types": kind}, "layer_types", labels) for kind in kinds]
    dense, step = theirs.get("mlp_only_layers") or (), theirs.get("decoder_sparse_step", 1)
    sparse = [theirs["num_experts"] > 0 and i not in dense and (i + 1) % step == 0 for i in range(count)]
    return [(label, "shared_moe" if experts else "swiglu") for label, experts in zip(token, sparse, strict=True)]


def _attention_fields(theirs: dict) -> dict:
    own = {"gated": True, "norm": "rmsnorm_offset", "eps": theirs["rms_norm_eps"]}
    return _family.attention_fields("hf/qwen3_next", theirs, part=0.25, **own)


def _gdn_fields(theirs: dict) -> dict:
    return {
        "heads": theirs["linear_num_key_heads"],
        "value_heads": theirs["linear_num_value_heads"],
        "head_size": theirs["linear_key_head_dim"],
        "value_size": theirs["linear_value_head_dim"],
        "taps": theirs["linear_conv_kernel_dim"],
        "eps": theirs["rms_norm_eps"],
    }


def _moe_fields(theirs: dict) -> dict:
    return {
        "experts": theirs["num_experts"],
        "top_k": theirs["num_experts_per_tok"],
        "hidden": theirs["moe_intermediate_size"],
        "shared_hidden": theirs["shared_expert_intermediate_size"],
        "shared_gate": True,
        "normalize": bool(theirs.get("norm_topk_prob", True)),
        "balance_loss": float(theirs.get("router_aux_loss_coef", 0.001)),
    }


FIELDS = {  # of the mixers by label; each reads only the fields that its layers need
    "gdn": _gdn_fields,
    "normed_attention": _attention_fields,
    "swiglu": lambda theirs: {"hidden": theirs["intermediate_size"]},
    "shared_moe": _moe_fields,
}


def config(theirs: dict) -> ConfigDict:
    _fields.wanted("hf/qwen3_next", theirs, hidden_act="silu", attention_bias=False)
    layers = _layers(theirs)
    cfg = _family.frame(theirs, layers)
    cfg.model.norm = "rmsnorm_offset"
    for label in dict.fromkeys(label for layer in layers for label in layer):
        cfg.model[label] = FIELDS[label](theirs)
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    found = _hybrids.mixers(model, KINDS, norm="rmsnorm_offset")
    if not found:
        return None
    own = {type(mixer).__name__: mixer for pair in found for mixer in pair}
    gdn, attention, swiglu, moe = (own.get(kind) for kind in KINDS)
    wanted = {"gated": True, "joint": False, "norm": "rmsnorm_offset", "bias": False, "output_bias": None, "window": None}
    if attention is None or not _decoders.has(attention, **wanted, eps=model.norm_eps):
        return None
    if gdn is not None and not _decoders.has(gdn, negative=False, gate="silu", eps=model.norm_eps):
        return None
    if moe is not None and not _decoders.has(moe, **ROUTING):
        return None
    theirs = _family.fields(model, [(attention, None)] * len(found), "qwen3_next", "Qwen3NextForCausalLM", part=True)
    if theirs is None:
        return None
    theirs |= {
        "layer_types": ["linear_attention" if type(token) is type(gdn) else "full_attention" for token, _ in found],
        "mlp_only_layers": [i for i, (_, channel) in enumerate(found) if type(channel) is type(swiglu)],
        "intermediate_size": swiglu.features if swiglu else 4 * model.width,
        "num_experts": 0,
    }
    if gdn is not None:
        value_heads, key_size, value_size = gdn.sizes()
        theirs |= {
            "linear_num_key_heads": gdn.heads,
            "linear_num_value_heads": value_heads,
            "linear_key_head_dim": key_size,
            "linear_value_head_dim": value_size,
            "linear_conv_kernel_dim": gdn.taps,
        }
    if moe is not None:
        theirs |= {
            "num_experts": moe.experts,
            "num_experts_per_tok": moe.top_k,
            "moe_intermediate_size": moe.features,
            "shared_expert_intermediate_size": moe.shared_hidden or moe.features,
            "norm_topk_prob": moe.normalize,
            "router_aux_loss_coef": moe.balance_loss,
        }
    return theirs


aliases = _family.aliases


def entries(theirs: dict) -> list[Entry]:
    layers = _layers(theirs)
    table = _family.outer(theirs, layers)
    for place in _hybrids.places(layers):
        table += {"gdn": _gdn, "normed_attention": _attention, "swiglu": _swiglu, "shared_moe": _moe}[place.label](theirs, place)
    return table


def _swiglu(theirs: dict, place: _hybrids.MixerPlace) -> list[Entry]:
    return _family.gated(place)


def _rows(paths: list[str], name: str, layers, groups: int, shapes: list[tuple[int, ...]]) -> Entry:
    """Our kernels [width, groups * n, …] from rows ordered by group, then by kernel. shapes: (n, …) of each kernel."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    cuts = np.cumsum(sizes)[:-1]

    def forward(w):
        pieces = np.split(w.reshape(groups, sum(sizes), -1), cuts, axis=1)
        return tuple(
            np.moveaxis(piece, -1, 0).reshape(-1, groups * n, *rest) for piece, (n, *rest) in zip(pieces, shapes, strict=True)
        )

    def backward(*kernels):
        pieces = [np.moveaxis(k.reshape(k.shape[0], groups, size), 0, -1) for k, size in zip(kernels, sizes, strict=True)]
        return (np.concatenate(pieces, axis=1).reshape(groups * sum(sizes), -1),)

    return Entry(tuple(paths), (name,), forward, backward, layers)


def _attention(theirs: dict, place: _hybrids.MixerPlace) -> list[Entry]:
    """The rows of each head: first its query, then its gate."""
    heads, size, q = theirs["num_attention_heads"], _family.head_size(theirs), f"{place.path}/q/kernel"
    table = [entry for entry in _family.attention(theirs, place, norms=("q_norm", "k_norm")) if entry.ours != (q,)]
    name = "model.layers.{layer}.self_attn.q_proj.weight"
    return [*table, _rows([q, f"{place.path}/g/kernel"], name, place.layers, heads, [(1, size)] * 2)]


def _gdn(theirs: dict, place: _hybrids.MixerPlace) -> list[Entry]:
    ours, names, layers = place.path, "model.layers.{layer}.linear_attn", place.layers
    own = _gdn_fields(theirs)
    heads, keys, values = own["heads"], own["head_size"], own["value_size"]
    shared = own["value_heads"] // heads  # value heads of a key head
    paths = [f"{ours}/{name}/kernel" for name in ("q", "k", "v", "g")]
    shapes = [(1, keys), (1, keys), (shared, values), (shared, values)]
    return [
        _rows(paths, f"{names}.in_proj_qkvz.weight", layers, heads, shapes),
        _rows([f"{ours}/beta/kernel", f"{ours}/a/kernel"], f"{names}.in_proj_ba.weight", layers, heads, [(shared,)] * 2),
        taps(f"{ours}/conv_kernel", f"{names}.conv1d.weight", layers),
        same(f"{ours}/A_log", f"{names}.A_log", layers),
        same(f"{ours}/dt_bias", f"{names}.dt_bias", layers),
        same(f"{ours}/norm_scale", f"{names}.norm.weight", layers),
        linear(f"{ours}/o/kernel", f"{names}.out_proj.weight", layers, (heads * shared, values, theirs["hidden_size"]), 2),
    ]


def _moe(theirs: dict, place: _hybrids.MixerPlace) -> list[Entry]:
    ours, at, layers = place.path, "model.layers.{layer}.mlp", place.layers
    table = [
        linear(f"{ours}/router/kernel", f"{at}.gate.weight", layers),
        linear(f"{ours}/shared_weight/kernel", f"{at}.shared_expert_gate.weight", layers),
    ]
    for name, shared in {"shared_in": "gate", "shared_up": "up", "shared_down": "down"}.items():
        table.append(linear(f"{ours}/{name}/kernel", f"{at}.shared_expert.{shared}_proj.weight", layers))
    if theirs.get(_deepseek.TOGETHER):
        return table + _deepseek.together_experts(ours, at, layers)
    return table + _deepseek.single_experts(ours, at, layers, theirs["num_experts"], ("gate_proj", "up_proj", "down_proj"))
