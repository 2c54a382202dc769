"""LFM2 (350M, 700M, 1.2B): transformers' Lfm2ForCausalLM. Rotary pairs are halves of a head, as in jaxseq."""

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import base, finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, linear, norm, same
from jaxseq.convert.sources import _decoders, _hybrids
from jaxseq.convert.sources.safari_hyena import taps

KINDS = {"LFMConv": "lfm_conv", "NormedAttention": "normed_attention", "SwiGLU": "swiglu"}
rank = 1  # models without convolutions are exported as Qwen3


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "lfm2"


def _layers(theirs: dict) -> list[_hybrids.Layer]:
    count = theirs["num_hidden_layers"]
    kinds = theirs.get("layer_types")
    if kinds is None:
        full = theirs.get("full_attn_idxs")
        kinds = ["full_attention" if full is None or i in full else "conv" for i in range(count)]
    labels = {"full_attention": "normed_attention", "conv": "lfm_conv"}
    return [(_fields.choice("hf/lfm2", {"layer_types": kind}, "layer_types", labels), "swiglu") for kind in kinds]


def _hidden(theirs: dict) -> int:
    """The width of the feed-forward; their config has the value before it is reduced and rounded up."""
    hidden = theirs.get("block_ff_dim") or theirs["intermediate_size"]
    if not theirs.get("block_auto_adjust_ff_dim", True):
        return hidden
    hidden, multiple = int(2 * hidden / 3), theirs.get("block_multiple_of", 256)
    if (factor := theirs.get("block_ffn_dim_multiplier", 1.0)) is not None:
        hidden = multiple * -(-int(factor * hidden) // multiple)
    return hidden


def _tied(theirs: dict) -> bool:
    return theirs.get("tie_embedding", theirs.get("tie_word_embeddings", True))


def config(theirs: dict) -> ConfigDict:
    _decoders.plain_rotary("hf/lfm2", theirs)
    cfg, layers = base(), _layers(theirs)
    cfg.model.stack = _hybrids.stack(layers)
    cfg.model.width, cfg.model.vocab = theirs["hidden_size"], theirs["vocab_size"]
    cfg.model.norm_eps, cfg.model.tied = theirs["norm_eps"], _tied(theirs)
    cfg.model.swiglu = {"hidden": _hidden(theirs)}
    if ("lfm_conv", "swiglu") in layers:
        cfg.model.lfm_conv = {"taps": theirs["conv_L_cache"], "bias": bool(theirs.get("conv_bias", False))}
    if ("normed_attention", "swiglu") in layers:
        cfg.model.normed_attention = {
            "heads": theirs["num_attention_heads"],
            "kv_heads": theirs.get("num_key_value_heads") or theirs["num_attention_heads"],
            "head_size": theirs.get("head_dim"),
            "theta": _decoders.theta(theirs, 1e6),
            "eps": theirs["norm_eps"],
        }
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    found = _hybrids.mixers(model, KINDS, norm="rmsnorm")
    if not found:
        return None
    own = {type(mixer).__name__: mixer for pair in found for mixer in pair}
    attention, conv, swiglu = (own.get(kind) for kind in ("NormedAttention", "LFMConv", "SwiGLU"))
    plain = _decoders.LLAMA | {"gated": False, "joint": False, "norm": "rmsnorm", "eps": model.norm_eps}
    plain |= {"bias": False, "output_bias": None}
    if attention is None or swiglu is None or not _decoders.has(attention, **plain):
        return None
    kinds = ["full_attention" if type(mixer).__name__ == "NormedAttention" else "conv" for mixer, _ in found]
    own_size = {"head_dim": attention.head_size} if attention.head_size else {}  # else both use width / heads
    return own_size | {
        "architectures": ["Lfm2ForCausalLM"],
        "model_type": "lfm2",
        "vocab_size": model.vocab,
        "hidden_size": model.width,
        "num_hidden_layers": len(found),
        "layer_types": kinds,
        "full_attn_idxs": [i for i, kind in enumerate(kinds) if kind == "full_attention"],
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads or attention.heads,
        "intermediate_size": swiglu.features,
        "block_auto_adjust_ff_dim": False,
        "conv_L_cache": conv.taps if conv else 3,
        "conv_bias": bool(conv and conv.bias),
        "norm_eps": model.norm_eps,
        "rope_theta": attention.theta,
        "rope_parameters": {"rope_theta": attention.theta, "rope_type": "default"},
        "tie_word_embeddings": model.tied,
    }


def aliases(theirs: dict) -> dict:
    return {"lm_head.weight": "model.embed_tokens.weight"} if _tied(theirs) else {}


def entries(theirs: dict) -> list[Entry]:
    layers = _layers(theirs)
    table = [same("embedding", "model.embed_tokens.weight"), *norm("final_norm", "model.embedding_norm", bias=False)]
    table += _hybrids.norms(layers, ("operator_norm", "ffn_norm"))
    if not _tied(theirs):
        table.append(same("head", "lm_head.weight"))
    for place in _hybrids.places(layers):
        table += {"swiglu": _swiglu, "lfm_conv": _conv, "normed_attention": _attention}[place.label](theirs, place)
    return table


def _swiglu(theirs: dict, place: _hybrids.MixerPlace) -> list[Entry]:
    names = {"gate": "w1", "up": "w3", "down": "w2"}
    return [
        linear(f"{place.path}/{name}/kernel", f"model.layers.{{layer}}.feed_forward.{w}.weight", place.layers)
        for name, w in names.items()
    ]


def _conv(theirs: dict, place: _hybrids.MixerPlace) -> list[Entry]:
    names, width = "model.layers.{layer}.conv", theirs["hidden_size"]
    table = [
        linear(f"{place.path}/in/kernel", f"{names}.in_proj.weight", place.layers, (width, 3, width)),
        taps(f"{place.path}/conv_kernel", f"{names}.conv.weight", place.layers),
        linear(f"{place.path}/out/kernel", f"{names}.out_proj.weight", place.layers),
    ]
    if theirs.get("conv_bias"):
        shape = (3, width)
        biased = Entry(
            (f"{place.path}/in/bias",), (f"{names}.in_proj.bias",), lambda b: (b.reshape(shape),), lambda b: (b.reshape(-1),),
            place.layers,
        )  # fmt: skip
        table += [biased, same(f"{place.path}/conv_bias", f"{names}.conv.bias", place.layers)]
        table.append(same(f"{place.path}/out/bias", f"{names}.out_proj.bias", place.layers))
    return table


def _attention(theirs: dict, place: _hybrids.MixerPlace) -> list[Entry]:
    names, width, heads = "model.layers.{layer}.self_attn", theirs["hidden_size"], theirs["num_attention_heads"]
    kv_heads, size = theirs.get("num_key_value_heads") or heads, theirs.get("head_dim") or width // heads
    table = [
        linear(f"{place.path}/{name}/kernel", f"{names}.{name}_proj.weight", place.layers, (width, count, size))
        for name, count in {"q": heads, "k": kv_heads, "v": kv_heads}.items()
    ]
    table.append(linear(f"{place.path}/o/kernel", f"{names}.out_proj.weight", place.layers, (heads, size, width), 2))
    for name in "qk":
        table += norm(f"{place.path}/{name}_norm", f"{names}.{name}_layernorm", place.layers, bias=False)
    return table
