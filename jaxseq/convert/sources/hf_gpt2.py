"""GPT-2: transformers' GPT2LMHeadModel. Matrices are (inputs, outputs); q, k and v are one matrix."""

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import base, finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, norm, reshaped, same, split
from jaxseq.convert.sources import _decoders, _stacks

ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu", "silu": "silu"}


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "gpt2"


def rename(names: set[str]) -> dict:
    """Published files lack the prefix "transformer." and contain the causal masks."""
    bare = "wte.weight" in names
    kept = [name for name in names if not name.endswith((".attn.bias", ".attn.masked_bias"))]
    return {f"transformer.{name}" if bare and not name.startswith("lm_head") else name: name for name in kept}


def config(theirs: dict) -> ConfigDict:
    plain = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
    _fields.wanted("hf/gpt2", theirs, **plain)
    activation = _fields.choice("hf/gpt2", theirs, "activation_function", ACTIVATIONS, "gelu_new")
    cfg = base()
    cfg.model.stack = f"{theirs['n_layer']}*(attention mlp)"
    cfg.model.width, cfg.model.vocab = theirs["n_embd"], theirs["vocab_size"]
    cfg.model.norm, cfg.model.norm_eps = "layernorm", theirs.get("layer_norm_epsilon", 1e-5)
    cfg.model.positions, cfg.model.max_positions = "learned", theirs["n_positions"]
    cfg.model.tied = theirs.get("tie_word_embeddings", True)
    cfg.model.attention = {"heads": theirs["n_head"], "rotary": False, "bias": True}
    cfg.model.mlp = {"hidden": theirs.get("n_inner") or 4 * theirs["n_embd"], "activation": activation}
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    found = _stacks.mixers(model, ("Attention", "MLP"), norm="layernorm", positions="learned")
    if not found:
        return None
    ((attention, mlp),) = found
    wanted = _decoders.LLAMA | {"rotary": False, "bias": True}
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    plain = _decoders.has(attention, **wanted) and _decoders.same_biases(attention) and _decoders.even_heads(attention)
    if not plain or not mlp.bias or mlp.activation not in names:
        return None
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": model.vocab,
        "n_embd": model.width,
        "n_layer": model.layers,
        "n_head": attention.heads,
        "n_positions": model.max_positions,
        "n_inner": mlp.features,
        "activation_function": names[mlp.activation],
        "layer_norm_epsilon": model.norm_eps,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "tie_word_embeddings": model.tied,
    }


def aliases(theirs: dict) -> dict:
    return {"lm_head.weight": "transformer.wte.weight"} if theirs.get("tie_word_embeddings", True) else {}


def entries(theirs: dict) -> list[Entry]:
    layers, width, heads = range(theirs["n_layer"]), theirs["n_embd"], theirs["n_head"]
    size = width // heads
    ours, names = "blocks_0", "transformer.h.{layer}"
    head = (lambda x: x.reshape(*x.shape[:-1], heads, size), lambda x: x.reshape(*x.shape[:-2], width))
    attention = f"{ours}/attention"

    def projections(kind, theirs_kind, axis):
        paths = [f"{attention}/{name}/{kind}" for name in "qkv"]
        return split(paths, f"{names}.attn.c_attn.{theirs_kind}", [width] * 3, layers, [head] * 3, axis)

    table = [
        same("embedding", "transformer.wte.weight"),
        same("position", "transformer.wpe.weight"),
        *norm("final_norm", "transformer.ln_f"),
        *norm(f"{ours}/norm_attention", f"{names}.ln_1", layers),
        *norm(f"{ours}/norm_mlp", f"{names}.ln_2", layers),
        projections("kernel", "weight", 1),
        projections("bias", "bias", 0),
        reshaped(f"{attention}/o/kernel", f"{names}.attn.c_proj.weight", (heads, size, width), (width, width), layers),
        same(f"{attention}/o/bias", f"{names}.attn.c_proj.bias", layers),
    ]
    for name, theirs_name in (("up", "c_fc"), ("down", "c_proj")):
        for kind, theirs_kind in (("kernel", "weight"), ("bias", "bias")):
            table.append(same(f"{ours}/mlp/{name}/{kind}", f"{names}.mlp.{theirs_name}.{theirs_kind}", layers))
    if not theirs.get("tie_word_embeddings", True):
        table.append(same("head", "lm_head.weight"))
    return table
