"""Phi-3 and 4: transformers' Phi3ForCausalLM. q, k and v are one matrix, gate and up another."""

import math

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, linear, split
from jaxseq.convert.sources import _decoders, _family, _hybrids

KINDS = {"Attention": "attention", "SwiGLU": "swiglu"}
rank = 2  # models that rotate whole heads are exported as Llama or Mistral


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "phi3"


def _layers(theirs: dict) -> list[_hybrids.Layer]:
    return [("attention", "swiglu")] * theirs["num_hidden_layers"]


def config(theirs: dict) -> ConfigDict:
    _fields.wanted("hf/phi3", theirs, hidden_act="silu")
    cfg = _family.frame(theirs, _layers(theirs))
    cfg.model.attention = _family.attention_fields("hf/phi3", theirs, part=1.0, window=theirs.get("sliding_window"))
    cfg.model.swiglu = {"hidden": theirs["intermediate_size"]}
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    found = _family.mixers(model, KINDS, norm="rmsnorm")
    if not found or found[0][0].bias or not _decoders.same_biases(found[0][0]) or found[0][0].rope_scaling != "none":
        return None
    attention, swiglu = found[0]
    fields = _family.fields(model, found, "phi3", "Phi3ForCausalLM", part=True)
    own = {"intermediate_size": swiglu.features, "sliding_window": attention.window}
    return fields and fields | own | {"pad_token_id": None}  # its default may be outside the vocabulary


aliases = _family.aliases


def entries(theirs: dict) -> list[Entry]:
    layers, width, names = _layers(theirs), theirs["hidden_size"], "model.layers.{layer}"
    token, channel = _hybrids.places(layers)
    heads, size = theirs["num_attention_heads"], _family.head_size(theirs)
    kv_heads = theirs.get("num_key_value_heads") or heads

    def cut(where: _hybrids.MixerPlace, pieces: dict[str, tuple[int, ...]], name: str) -> Entry:
        """Several of our kernels from the rows of one matrix of theirs. pieces: {name: shape of the outputs}."""
        sizes = [math.prod(shape) for shape in pieces.values()]
        maps = [(lambda w, s=s: w.T.reshape(width, *s), lambda k: k.reshape(width, -1).T) for s in pieces.values()]
        return split([f"{where.path}/{piece}/kernel" for piece in pieces], f"{names}.{name}.weight", sizes, where.layers, maps)

    hidden = (theirs["intermediate_size"],)
    return [
        *_family.outer(theirs, layers),
        cut(token, {"q": (heads, size), "k": (kv_heads, size), "v": (kv_heads, size)}, "self_attn.qkv_proj"),
        linear(f"{token.path}/o/kernel", f"{names}.self_attn.o_proj.weight", token.layers, (heads, size, width), 2),
        cut(channel, {"gate": hidden, "up": hidden}, "mlp.gate_up_proj"),
        linear(f"{channel.path}/down/kernel", f"{names}.mlp.down_proj.weight", channel.layers),
    ]
