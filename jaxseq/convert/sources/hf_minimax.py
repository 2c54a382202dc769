"""MiniMax-01 (456B-A46B): transformers' MiniMaxForCausalLM. Lightning attention, attention and experts."""

import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, buffer, linear, norm
from jaxseq.convert.sources import _decoders, _family, _hybrids, hf_mixtral

KINDS = {"LightningAttention": "lightning", "Attention": "attention", "MoE": "moe"}
EPS = 1e-6  # of the norm of lightning attention
BLOCK = 256  # tokens that their code computes at once; the constants in files depend on it, the results do not
FACTORS = {  # of the residual connections: one factor for all parts of a layer
    factor: [f"{part}_{factor}_factor" for part in ("full_attn", "linear_attn", "mlp")] for factor in ("alpha", "beta")
}
ROUTING = {"gated": True, "bias": False, "normalize": True, "activation": "silu", "z_loss": 0.0}


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "minimax"


complete = hf_mixtral.complete


def _layers(theirs: dict) -> list[_hybrids.Layer]:
    kinds, labels = theirs.get("layer_types"), {"full_attention": "attention", "linear_attention": "lightning"}
    if kinds is None:
        kinds = ["linear_attention" if i % 2 else "full_attention" for i in range(theirs["num_hidden_layers"])]
    return [(_fields.choice("hf/minimax", {"layer_types": kind}, "layer_types", labels), "moe") for kind in kinds]


def _block(theirs: dict) -> dict:
    """alpha and beta. Raises UserError if the mixers of a layer differ in them."""
    found = {}
    for factor, names in FACTORS.items():
        found[factor] = float(theirs.get(names[0], 1))
        _fields.wanted("hf/minimax", theirs, **dict.fromkeys(names, found[factor]))
    return found


def config(theirs: dict) -> ConfigDict:
    _fields.wanted("hf/minimax", theirs, hidden_act="silu")
    layers = _layers(theirs)
    cfg = _family.frame(theirs, layers)
    cfg.model.block = "normed_residual"
    cfg.model.normed_residual = _block(theirs)
    own = _family.attention_fields("hf/minimax", theirs, theta=1e6, window=theirs.get("sliding_window"))
    if ("attention", "moe") in layers:
        cfg.model.attention = own
    if ("lightning", "moe") in layers:
        cfg.model.lightning = {"heads": own["heads"], "head_size": own["head_size"], "eps": EPS}
    cfg.model.moe = hf_mixtral.experts(theirs)
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    found = _hybrids.mixers(model, KINDS, block="NormedResidual", norm="rmsnorm")
    if not found or len({(block.alpha, block.beta) for block in model.blocks}) > 1:
        return None
    own = {type(mixer).__name__: mixer for pair in found for mixer in pair}
    lightning, attention, moe = (own.get(kind) for kind in KINDS)
    if attention is None or attention.bias or not _decoders.same_biases(attention) or not _decoders.has(moe, **ROUTING):
        return None
    theirs = _family.fields(model, [(attention, None)] * len(found), "minimax", "MiniMaxForCausalLM")
    if theirs is None:
        return None
    if lightning is not None and not _decoders.has(lightning, eps=EPS, heads=attention.heads, head_size=attention.head_size):
        return None
    block = model.blocks[0]
    theirs |= {name: getattr(block, factor) for factor, names in FACTORS.items() for name in names}
    return theirs | {
        "layer_types": ["linear_attention" if type(token) is type(lightning) else "full_attention" for token, _ in found],
        "block_size": BLOCK,
        "sliding_window": attention.window,
        **hf_mixtral.described(moe),
    }


aliases = _family.aliases


def entries(theirs: dict) -> list[Entry]:
    layers, experts = _layers(theirs), theirs["num_local_experts"]
    table = _family.outer(theirs, layers)
    for place in _hybrids.places(layers):
        if place.label == "moe":
            moe = hf_mixtral.together if theirs.get(hf_mixtral.TOGETHER) else hf_mixtral.one_by_one
            table += moe(place.path, "model.layers.{layer}", place.layers, experts)
        else:
            table += (_lightning if place.label == "lightning" else _family.attention)(theirs, place)
    return table


def _lightning(theirs: dict, place: _hybrids.MixerPlace) -> list[Entry]:
    ours, names, layers = place.path, "model.layers.{layer}.self_attn", place.layers
    width, heads, size = theirs["hidden_size"], theirs["num_attention_heads"], _family.head_size(theirs)

    def forward(w):  # the rows of each head: first its query, then its key, then its value
        return tuple(np.moveaxis(w.reshape(heads, 3, size, width), -1, 0).transpose(2, 0, 1, 3))

    def backward(*kernels):
        return (np.moveaxis(np.stack(kernels), 1, -1).transpose(1, 0, 2, 3).reshape(-1, width),)

    table = [
        Entry(tuple(f"{ours}/{name}/kernel" for name in "qkv"), (f"{names}.qkv_proj.weight",), forward, backward, layers),
        linear(f"{ours}/g/kernel", f"{names}.output_gate.weight", layers, (width, heads, size)),
        linear(f"{ours}/o/kernel", f"{names}.out_proj.weight", layers, (heads, size, width), 2),
        *norm(f"{ours}/norm", f"{names}.norm", layers, bias=False),
    ]
    for layer in layers:
        for name, value in _decays(theirs, layer).items():
            table.append(buffer(f"model.layers.{layer}.self_attn.{name}", value))
    return table


def _decays(theirs: dict, layer: int) -> dict[str, np.ndarray]:
    """The constants in a file: the decays within a block of tokens."""
    heads, size = theirs["num_attention_heads"], theirs.get("block_size", BLOCK)
    left = 1 - layer / (theirs["num_hidden_layers"] - 1 + 1e-5) + 1e-5
    base = np.float32(1 / 2 ** (8 / heads)) ** np.arange(1, heads + 1, dtype=np.float32)
    rate_H11 = (base * np.float32(left))[:, None, None]
    i_C1 = np.arange(1, size + 1, dtype=np.float32)[:, None]
    distance_CC = i_C1 - i_C1.T
    exp = lambda x: np.exp(x.astype(np.float64)).astype(np.float32)  # noqa: E731
    within_HCC = np.where(distance_CC >= 0, exp(-rate_H11 * np.maximum(distance_CC, 0)), np.float32(0))
    return {
        "slope_rate": rate_H11,
        "query_decay": exp(-rate_H11 * i_C1),
        "key_decay": exp(-rate_H11 * (size - i_C1)),
        "diagonal_decay": within_HCC[None],
    }
