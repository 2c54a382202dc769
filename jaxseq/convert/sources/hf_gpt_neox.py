"""GPT-NeoX and Pythia: transformers' GPTNeoXForCausalLM. q, k and v are one matrix, ordered by head."""

import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import base, finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, linear, norm, same
from jaxseq.convert.sources import _decoders, _stacks

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "relu": "relu", "silu": "silu"}
HEAD = "embed_out.weight"


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "gpt_neox"


def rename(names: set[str]) -> dict:
    """Older files contain masks and frequencies. The head's name in transformers' memory differs from that in files."""
    buffers = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
    return {HEAD if name == "lm_head.weight" else name: name for name in names if not name.endswith(buffers)}


def _rotary_fraction(theirs: dict) -> float:
    settings = theirs.get("rope_parameters") or {}
    if settings.get("partial_rotary_factor") is not None:
        return float(_fields.number(settings, "partial_rotary_factor", _fields.FRACTION))
    return float(theirs.get("rotary_pct", 0.25))


def config(theirs: dict) -> ConfigDict:
    activation = _fields.choice("hf/gpt_neox", theirs, "hidden_act", ACTIVATIONS, "gelu")
    _decoders.plain_rotary("hf/gpt_neox", theirs)
    cfg = base()
    cfg.model.stack = f"{theirs['num_hidden_layers']}*(attention mlp)"
    cfg.model.block = "parallel" if theirs.get("use_parallel_residual", True) else "residual"
    cfg.model.width, cfg.model.vocab = theirs["hidden_size"], theirs["vocab_size"]
    cfg.model.norm, cfg.model.norm_eps = "layernorm", theirs.get("layer_norm_eps", 1e-5)
    cfg.model.tied = theirs.get("tie_word_embeddings", False)
    cfg.model.attention = {
        "heads": theirs["num_attention_heads"],
        "rotary_fraction": _rotary_fraction(theirs),
        "theta": _decoders.theta(theirs, float(theirs.get("rotary_emb_base", 10000.0))),
        "bias": bool(theirs.get("attention_bias", True)),
    }
    cfg.model.mlp = {"hidden": theirs["intermediate_size"], "activation": activation}
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    kind = ("Attention", "MLP")
    parallel = _stacks.mixers(model, kind, block="Parallel", norm="layernorm")
    found = parallel or _stacks.mixers(model, kind, norm="layernorm")
    if not found or (parallel and model.blocks[0].shared_norm):
        return None
    ((attention, mlp),) = found
    wanted = _decoders.LLAMA | {"rotary_fraction": attention.rotary_fraction}
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    plain = _decoders.has(attention, **wanted) and _decoders.same_biases(attention) and _decoders.even_heads(attention)
    if not plain or not mlp.bias or mlp.activation not in names:
        return None
    fraction, theta = attention.rotary_fraction, attention.theta
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": model.vocab,
        "hidden_size": model.width,
        "intermediate_size": mlp.features,
        "num_hidden_layers": model.layers,
        "num_attention_heads": attention.heads,
        "hidden_act": names[mlp.activation],
        "layer_norm_eps": model.norm_eps,
        "rotary_pct": fraction,
        "rotary_emb_base": theta,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default", "partial_rotary_factor": fraction},
        "attention_bias": attention.bias,
        "use_parallel_residual": bool(parallel),
        "tie_word_embeddings": model.tied,
    }


def aliases(theirs: dict) -> dict:
    return {HEAD: "gpt_neox.embed_in.weight"} if theirs.get("tie_word_embeddings") else {}


def _heads(paths: list[str], name: str, layers, heads: int, size: int, width: int | None) -> Entry:
    """q, k and v from rows ordered by head, then q, k, v, then channel. width None: a bias."""
    inputs = () if width is None else (width,)

    def forward(x):
        rows = x.reshape(heads, 3, size, *inputs)
        return tuple(np.moveaxis(rows[:, i], -1, 0) if inputs else rows[:, i] for i in range(3))

    def backward(*pieces):
        rows = [np.moveaxis(piece, 0, -1) if inputs else piece for piece in pieces]
        return (np.stack(rows, axis=1).reshape(3 * heads * size, *inputs),)

    return Entry(tuple(paths), (name,), forward, backward, layers)


def entries(theirs: dict) -> list[Entry]:
    layers, width, heads = range(theirs["num_hidden_layers"]), theirs["hidden_size"], theirs["num_attention_heads"]
    size, ours, names = width // heads, "blocks_0", "gpt_neox.layers.{layer}"
    attention, theirs_attention = f"{ours}/attention", f"{names}.attention"
    biased = theirs.get("attention_bias", True)
    table = [
        same("embedding", "gpt_neox.embed_in.weight"),
        *norm("final_norm", "gpt_neox.final_layer_norm"),
        *norm(f"{ours}/norm_attention", f"{names}.input_layernorm", layers),
        *norm(f"{ours}/norm_mlp", f"{names}.post_attention_layernorm", layers),
        linear(f"{attention}/o/kernel", f"{theirs_attention}.dense.weight", layers, (heads, size, width), 2),
    ]
    for kind, theirs_kind, inputs in (("kernel", "weight", width), ("bias", "bias", None))[: 2 if biased else 1]:
        paths = [f"{attention}/{name}/{kind}" for name in "qkv"]
        table.append(_heads(paths, f"{theirs_attention}.query_key_value.{theirs_kind}", layers, heads, size, inputs))
    if biased:
        table.append(same(f"{attention}/o/bias", f"{theirs_attention}.dense.bias", layers))
    for name, theirs_name in (("up", "dense_h_to_4h"), ("down", "dense_4h_to_h")):
        table.append(linear(f"{ours}/mlp/{name}/kernel", f"{names}.mlp.{theirs_name}.weight", layers))
        table.append(same(f"{ours}/mlp/{name}/bias", f"{names}.mlp.{theirs_name}.bias", layers))
    if not theirs.get("tie_word_embeddings"):
        table.append(same("head", HEAD))
    return table
