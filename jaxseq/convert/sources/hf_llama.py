"""Llama and its family (SmolLM2): transformers' LlamaForCausalLM. q and k turn halves, as our rotary pairs do."""

from ml_collections import ConfigDict

from jaxseq.config import base, finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, linear, norm, reshaped, same
from jaxseq.convert.sources import _decoders, _stacks


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "llama"


def rename(names: set[str]) -> dict:
    """Older files carry the frequencies."""
    return {name: name for name in names if not name.endswith(".rotary_emb.inv_freq")}


def config(theirs: dict) -> ConfigDict:
    _decoders.plain_rotary("hf/llama", theirs)
    _fields.wanted("hf/llama", theirs, hidden_act="silu", mlp_bias=False)
    cfg = frame(theirs, "swiglu")
    cfg.model.swiglu = {"hidden": theirs["intermediate_size"]}
    return finish(cfg)


def frame(theirs: dict, mlp: str, theta: float = 10000.0, **attention) -> ConfigDict:
    """All but the channel mixer; also Mixtral's. theta: the default. attention: more of its fields."""
    cfg = base()
    cfg.model.stack = f"{theirs['num_hidden_layers']}*(attention {mlp})"
    cfg.model.width, cfg.model.vocab = theirs["hidden_size"], theirs["vocab_size"]
    cfg.model.norm_eps = theirs["rms_norm_eps"]
    cfg.model.tied = theirs.get("tie_word_embeddings", False)
    cfg.model.attention = {
        "heads": theirs["num_attention_heads"],
        "kv_heads": theirs.get("num_key_value_heads") or theirs["num_attention_heads"],
        "head_size": theirs.get("head_dim"),
        "theta": _decoders.theta(theirs, theta),
        "bias": bool(theirs.get("attention_bias", False)),
    } | attention
    return cfg


def describe(model) -> dict | None:
    found = _stacks.mixers(model, ("Attention", "SwiGLU"), norm="rmsnorm")
    if not found:
        return None
    ((attention, swiglu),) = found
    if not _decoders.has(attention, **_decoders.LLAMA) or not _decoders.same_biases(attention):
        return None
    own = {"intermediate_size": swiglu.features, "attention_bias": attention.bias, "mlp_bias": False}
    return fields(model, attention, "llama", "LlamaForCausalLM") | own


def fields(model, attention, name: str, architecture: str) -> dict:
    """What configs of such models say, the channel mixer aside; also Mixtral's."""
    return {
        "architectures": [architecture],
        "model_type": name,
        "vocab_size": model.vocab,
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads or attention.heads,
        "head_dim": attention.head_size or model.width // attention.heads,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "rope_theta": attention.theta,
        "rope_parameters": {"rope_theta": attention.theta, "rope_type": "default"},
        "tie_word_embeddings": model.tied,
    }


def aliases(theirs: dict) -> dict:
    return {"lm_head.weight": "model.embed_tokens.weight"} if theirs.get("tie_word_embeddings") else {}


def entries(theirs: dict) -> list[Entry]:
    layers, own, names = range(theirs["num_hidden_layers"]), "blocks_0/swiglu", "model.layers.{layer}.mlp"
    mlp = [linear(f"{own}/{name}/kernel", f"{names}.{name}_proj.weight", layers) for name in ("gate", "up", "down")]
    return outer(theirs, "swiglu") + mlp


def outer(theirs: dict, mlp: str) -> list[Entry]:
    """The table without the channel mixer's insides; also Mixtral's."""
    layers = range(theirs["num_hidden_layers"])
    width, heads = theirs["hidden_size"], theirs["num_attention_heads"]
    kv_heads, size = theirs.get("num_key_value_heads") or heads, theirs.get("head_dim") or width // heads
    ours, names = "blocks_0", "model.layers.{layer}"
    table = [
        same("embedding", "model.embed_tokens.weight"),
        *norm("final_norm", "model.norm", bias=False),
        *norm(f"{ours}/norm_attention", f"{names}.input_layernorm", layers, bias=False),
        *norm(f"{ours}/norm_{mlp}", f"{names}.post_attention_layernorm", layers, bias=False),
    ]
    shapes = {"q": ((width, heads, size), 1), "k": ((width, kv_heads, size), 1), "v": ((width, kv_heads, size), 1)}
    for name, (shape, inputs) in (shapes | {"o": ((heads, size, width), 2)}).items():
        attention, theirs_name = f"{ours}/attention/{name}", f"{names}.self_attn.{name}_proj"
        table.append(linear(f"{attention}/kernel", f"{theirs_name}.weight", layers, shape, inputs))
        if theirs.get("attention_bias"):
            table.append(reshaped(f"{attention}/bias", f"{theirs_name}.bias", shape[inputs:], (-1,), layers))
    if not theirs.get("tie_word_embeddings"):
        table.append(same("head", "lm_head.weight"))
    return table
