"""OPT: transformers' OPTForCausalLM. The first two rows of the table of positions are unused."""

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import base, finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, linear, norm, reshaped, same
from jaxseq.convert.sources import _decoders, _hybrids

KINDS = {"Attention": "attention", "MLP": "mlp"}
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "silu": "silu"}
OFFSET = 2  # row of position 0
FRAME = {"norm": "layernorm", "norm_eps": 1e-5, "positions": "learned", "position_offset": OFFSET}


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "opt"


def rename(names: set[str]) -> dict:
    """Some published files lack the prefix "model."."""
    return {f"model.{name}" if name.startswith("decoder.") else name: name for name in names}


def _layers(theirs: dict) -> list[_hybrids.Layer]:
    return [("attention", "mlp")] * theirs["num_hidden_layers"]


def _before(theirs: dict) -> bool:
    """Whether the model is pre-norm; the post-norm model (350m) has no norm after the last block."""
    return theirs.get("do_layer_norm_before", True)


def _last_norm(theirs: dict) -> bool:
    return _before(theirs) and not theirs.get("_remove_final_layer_norm", False)


def _embedding_width(theirs: dict) -> int:
    """The width of the embedding; 0 if it is that of the model."""
    own = theirs.get("word_embed_proj_dim") or theirs["hidden_size"]
    return 0 if own == theirs["hidden_size"] else own


def config(theirs: dict) -> ConfigDict:
    _fields.wanted("hf/opt", theirs, layer_norm_elementwise_affine=True)
    activation = _fields.choice("hf/opt", theirs, "activation_function", ACTIVATIONS, "relu")
    cfg, bias = base(), bool(theirs.get("enable_bias", True))
    cfg.model.update(FRAME)
    cfg.model.stack = _hybrids.stack(_layers(theirs))
    cfg.model.block = "residual" if _before(theirs) else "post_norm"
    cfg.model.width, cfg.model.vocab = theirs["hidden_size"], theirs["vocab_size"]
    cfg.model.max_positions = theirs["max_position_embeddings"]
    cfg.model.embedding_width, cfg.model.last_norm = _embedding_width(theirs), _last_norm(theirs)
    cfg.model.tied = theirs.get("tie_word_embeddings", True)
    cfg.model.attention = {"heads": theirs["num_attention_heads"], "rotary": False, "bias": bias}
    cfg.model.mlp = {"hidden": theirs["ffn_dim"], "activation": activation, "bias": bias}
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    frame = FRAME | {"embedding_width": getattr(model, "embedding_width", 0)}
    before = _hybrids.mixers(model, KINDS, last_norm=getattr(model, "last_norm", True), **frame)
    found = before or _hybrids.mixers(model, KINDS, block="PostNorm", last_norm=False, **frame)
    if not found:
        return None
    attention, mlp = found[0]
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    wanted = _decoders.LLAMA | {"rotary": False, "bias": mlp.bias}
    plain = _decoders.has(attention, **wanted) and _decoders.same_biases(attention) and _decoders.even_heads(attention)
    if not plain or mlp.activation not in names:
        return None
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "vocab_size": model.vocab,
        "hidden_size": model.width,
        "word_embed_proj_dim": model.embedding_width or model.width,
        "num_hidden_layers": len(found),
        "num_attention_heads": attention.heads,
        "ffn_dim": mlp.features,
        "activation_function": names[mlp.activation],
        "enable_bias": mlp.bias,
        "max_position_embeddings": model.max_positions,
        "do_layer_norm_before": bool(before),
        "_remove_final_layer_norm": bool(before) and not model.last_norm,
        "layer_norm_elementwise_affine": True,
        "tie_word_embeddings": model.tied,
    }


def aliases(theirs: dict) -> dict:
    return {"lm_head.weight": "model.decoder.embed_tokens.weight"} if theirs.get("tie_word_embeddings", True) else {}


def entries(theirs: dict) -> list[Entry]:
    token, channel = _hybrids.places(_layers(theirs))
    width, heads, layers = theirs["hidden_size"], theirs["num_attention_heads"], token.layers
    decoder, names, head = "model.decoder", "model.decoder.layers.{layer}", (heads, width // heads)
    table = [
        same("embedding", f"{decoder}.embed_tokens.weight"),
        same("position", f"{decoder}.embed_positions.weight"),
        *norm(token.norm, f"{names}.self_attn_layer_norm", layers),
        *norm(channel.norm, f"{names}.final_layer_norm", layers),
        linear(f"{token.path}/o/kernel", f"{names}.self_attn.out_proj.weight", layers, (*head, width), 2),
    ]
    table += [linear(f"{token.path}/{n}/kernel", f"{names}.self_attn.{n}_proj.weight", layers, (width, *head)) for n in "qkv"]
    table += [linear(f"{channel.path}/{n}/kernel", f"{names}.{fc}.weight", layers) for n, fc in (("up", "fc1"), ("down", "fc2"))]
    if theirs.get("enable_bias", True):
        table += [reshaped(f"{token.path}/{n}/bias", f"{names}.self_attn.{n}_proj.bias", head, (width,), layers) for n in "qkv"]
        table.append(same(f"{token.path}/o/bias", f"{names}.self_attn.out_proj.bias", layers))
        table += [same(f"{channel.path}/{n}/bias", f"{names}.{fc}.bias", layers) for n, fc in (("up", "fc1"), ("down", "fc2"))]
    if _last_norm(theirs):
        table += norm("final_norm", f"{decoder}.final_layer_norm")
    if _embedding_width(theirs):
        table += [linear(f"{name}/kernel", f"{decoder}.{name}.weight") for name in ("project_in", "project_out")]
    if not theirs.get("tie_word_embeddings", True):
        table.append(same("head", "lm_head.weight"))
    return table
