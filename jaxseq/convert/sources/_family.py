"""Shared by decoders like Llama: the fields of their configs and the names of their tensors.

A layer is a token mixer and a channel mixer; `jaxseq.convert.sources._hybrids` combines layers of several kinds.
"""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxseq.config import base
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, linear, norm, reshaped, same
from jaxseq.convert.sources import _decoders, _hybrids, _rope

PRE_NORM = ("input_layernorm", "post_attention_layernorm")


def frame(theirs: dict, layers: Sequence[_hybrids.Layer], tied: bool = False) -> ConfigDict:
    """Our config without the mixers. tied: whether embedding and head are tied by default."""
    cfg = base()
    cfg.model.stack = _hybrids.stack(layers)
    cfg.model.width, cfg.model.vocab = theirs["hidden_size"], theirs["vocab_size"]
    cfg.model.norm_eps = theirs["rms_norm_eps"]
    cfg.model.tied = theirs.get("tie_word_embeddings", tied)
    return cfg


def windowed(source: str, kinds: Sequence[str], label: str = "attention") -> list[str]:
    """The label of each layer's attention. kinds: the `layer_types` of their config."""
    labels = {"full_attention": label, "sliding_attention": f"{label}:local"}
    return [_fields.choice(source, {"layer_types": kind}, "layer_types", labels) for kind in kinds]


def in_turn(source: str, theirs: dict, channel: str) -> list[_hybrids.Layer]:
    """Layers with and without a window, as in `layer_types`; by default they alternate, and the first has a window."""
    kinds = theirs.get("layer_types")
    if kinds is None:
        kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(theirs["num_hidden_layers"])]
    return [(label, channel) for label in windowed(source, kinds)]


def by_window(layers: Sequence[_hybrids.Layer], attention: dict[str, Any], window: int) -> dict[str, dict[str, Any]]:
    """{label of `windowed`: the fields of the mixer}, which are those in `attention` and the window."""
    return {label: attention | {"window": window if label.endswith(":local") else None} for label, _ in layers}


def label_of(mixer: Any) -> str:
    """The label that `windowed` gives this mixer."""
    label = {"Attention": "attention", "NormedAttention": "normed_attention"}[type(mixer).__name__]
    return f"{label}:local" if mixer.window else label


def mixers(model: Any, kinds: dict, **fields: Any) -> list[tuple] | None:
    """`_hybrids.mixers` of a model whose attention layers differ in their windows only; else None."""
    found = _hybrids.mixers(model, kinds, **fields)
    alike = [token.clone(window=None, name=None) for token, _ in found or ()]
    return found if all(token == alike[0] for token in alike) else None


def layer_types(found: Sequence[tuple[Any, Any]]) -> list[str]:
    """The `layer_types` of their config. found: the mixers of each layer."""
    return ["sliding_attention" if token.window else "full_attention" for token, _ in found]


def head_size(theirs: dict) -> int:
    return theirs.get("head_dim") or theirs["hidden_size"] // theirs["num_attention_heads"]


def attention_fields(source: str, theirs: dict, theta: float = 10000.0, part: float | None = None, **more: Any) -> dict[str, Any]:
    """The fields of the mixers attention and normed_attention. theta, part: as in `_rope.attention`."""
    size, heads = head_size(theirs), theirs["num_attention_heads"]
    return _rope.attention(source, theirs, size, theta, part) | {
        "heads": heads,
        "kv_heads": theirs.get("num_key_value_heads") or heads,
        "head_size": None if size * heads == theirs["hidden_size"] else size,
        **more,
    }


def fields(model: Any, found: Sequence[tuple], name: str, architecture: str, part: bool = False) -> dict[str, Any] | None:
    """The fields of their config, without those of the channel mixer; None if their config has no fields for this attention.

    found: the mixers of each layer; part: as in `_rope.described`.
    """
    attention = found[0][0]
    size = attention.head_size or model.width // attention.heads
    rope = _rope.described(attention, size, part)
    if rope is None or not _decoders.has(attention, rotary=True, interleaved=False, alibi=False, cap=None, sink=False):
        return None
    return rope | {
        "architectures": [architecture],
        "model_type": name,
        "vocab_size": model.vocab,
        "hidden_size": model.width,
        "num_hidden_layers": len(found),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads or attention.heads,
        "head_dim": size,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tied,
    }


def aliases(theirs: dict, tied: bool = False) -> dict:
    """The head, if it is tied to the embedding. tied: the default."""
    return {"lm_head.weight": "model.embed_tokens.weight"} if theirs.get("tie_word_embeddings", tied) else {}


def outer(
    theirs: dict, layers: Sequence[_hybrids.Layer], norms: tuple[str, str] | dict[str, str] = PRE_NORM, tied: bool = False,
    last: str = "norm",
) -> list[Entry]:  # fmt: skip
    """Embedding, head and norms. norms: as in `_hybrids.norms`; tied: the default; last: the name of the last norm."""
    table = [same("embedding", "model.embed_tokens.weight"), *norm("final_norm", f"model.{last}", bias=False)]
    if not theirs.get("tie_word_embeddings", tied):
        table.append(same("head", "lm_head.weight"))
    return table + _hybrids.norms(layers, norms)


def attention(
    theirs: dict, place: _hybrids.MixerPlace, biases: str = "", norms: Sequence[str] = (), at: str = "self_attn"
) -> list[Entry]:  # fmt: skip
    """biases: the letters of "qkvo" whose maps have a bias. norms: "q_norm", "k_norm", both or none. at: its name in a layer."""
    ours, names, layers = place.path, f"model.layers.{{layer}}.{at}", place.layers
    width, heads, size = theirs["hidden_size"], theirs["num_attention_heads"], head_size(theirs)
    kv_heads, table = theirs.get("num_key_value_heads") or heads, []
    shapes = {"q": ((width, heads, size), 1), "k": ((width, kv_heads, size), 1), "v": ((width, kv_heads, size), 1)}
    for name, (shape, inputs) in (shapes | {"o": ((heads, size, width), 2)}).items():
        table.append(linear(f"{ours}/{name}/kernel", f"{names}.{name}_proj.weight", layers, shape, inputs))
        if name in biases:
            table.append(reshaped(f"{ours}/{name}/bias", f"{names}.{name}_proj.bias", shape[inputs:], (-1,), layers))
    for name in norms:
        table += norm(f"{ours}/{name}", f"{names}.{name}", layers, bias=False)
    return table


def gated(place: _hybrids.MixerPlace, at: str = "mlp", biased: bool = False) -> list[Entry]:
    """A gated feed-forward: gate, up and down. at: its name in a layer."""
    ours, names, layers = place.path, f"model.layers.{{layer}}.{at}", place.layers
    table = [linear(f"{ours}/{n}/kernel", f"{names}.{n}_proj.weight", layers) for n in ("gate", "up", "down")]
    return table + [same(f"{ours}/{n}/bias", f"{names}.{n}_proj.bias", layers) for n in ("gate", "up", "down") if biased]
