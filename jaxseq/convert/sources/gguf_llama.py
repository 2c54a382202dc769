"""Llama and its family (SmolLM2) in GGUF, with their tokenizer. Rotary pairs are adjacent rows of q and k."""

import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, linear, norm, same
from jaxseq.convert.sources import _gguf_tokenizer, hf_llama

TIED = "output_is_token_embd"  # added by `complete`: the file has no separate head
KEYS = {  # {field of hf/llama: field of GGUF}
    "num_hidden_layers": "llama.block_count",
    "hidden_size": "llama.embedding_length",
    "intermediate_size": "llama.feed_forward_length",
    "num_attention_heads": "llama.attention.head_count",
    "rms_norm_eps": "llama.attention.layer_norm_rms_epsilon",
    "vocab_size": "llama.vocab_size",
}
KV_HEADS, HEAD_SIZE = "llama.attention.head_count_kv", "llama.rope.dimension_count"
THETA, SCALING = "llama.rope.freq_base", "llama.rope.scaling.type"


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("general.architecture") == "llama"


def complete(theirs: dict, names: set[str]) -> dict:
    return {TIED: "output.weight" not in names} | theirs


def _llama(theirs: dict) -> dict:
    """The metadata as a config of hf/llama."""
    _fields.wanted("gguf/llama", theirs, **{SCALING: "none", "llama.expert_count": 0})
    tokens = {"llama.vocab_size": len(theirs.get("tokenizer.ggml.tokens", ()))}
    fields = {ours: (tokens | theirs)[key] for ours, key in KEYS.items()}
    fields["rms_norm_eps"] = float(str(np.float32(fields["rms_norm_eps"])))  # a float32 becomes the shortest decimal: 1e-5
    fields["num_key_value_heads"] = theirs.get(KV_HEADS, fields["num_attention_heads"])
    fields["head_dim"] = theirs.get(HEAD_SIZE, fields["hidden_size"] // fields["num_attention_heads"])
    fields |= {"rope_theta": theirs.get(THETA, 10000.0), "tie_word_embeddings": theirs[TIED]}
    _fields.check(fields)
    return fields


def config(theirs: dict) -> ConfigDict:
    return hf_llama.config(_llama(theirs))


def describe(model: nn.Module) -> dict | None:
    llama = hf_llama.describe(model)
    if llama is None or llama["attention_bias"] or llama["rope_parameters"]["rope_type"] != "default":
        return None
    fields = {key: llama[ours] for ours, key in KEYS.items()} | {KV_HEADS: llama["num_key_value_heads"]}
    fields |= {HEAD_SIZE: llama["head_dim"], THETA: llama["rope_theta"], TIED: llama["tie_word_embeddings"]}
    return {"general.architecture": "llama"} | fields


def _turned(ours: str, theirs: str, layers, width: int, heads: int, size: int) -> Entry:
    """Reorders the rows of a head: theirs are pair after pair, ours the first channels of all pairs, then the second ones."""

    def forward(w):
        rows = w.reshape(heads, size // 2, 2, width).swapaxes(1, 2)
        return (rows.reshape(heads * size, width).T.reshape(width, heads, size),)

    def backward(kernel):
        rows = kernel.reshape(width, heads * size).T.reshape(heads, 2, size // 2, width).swapaxes(1, 2)
        return (rows.reshape(heads * size, width),)

    return Entry((ours,), (theirs,), forward, backward, layers)


def entries(theirs: dict) -> list[Entry]:
    llama = _llama(theirs)
    layers, width, heads = range(llama["num_hidden_layers"]), llama["hidden_size"], llama["num_attention_heads"]
    kv_heads, size, ours, names = llama["num_key_value_heads"], llama["head_dim"], "blocks_0", "blk.{layer}"
    attention = f"{ours}/attention"
    table = [
        same("embedding", "token_embd.weight"),
        *norm("final_norm", "output_norm", bias=False),
        *norm(f"{ours}/norm_attention", f"{names}.attn_norm", layers, bias=False),
        *norm(f"{ours}/norm_swiglu", f"{names}.ffn_norm", layers, bias=False),
        _turned(f"{attention}/q/kernel", f"{names}.attn_q.weight", layers, width, heads, size),
        _turned(f"{attention}/k/kernel", f"{names}.attn_k.weight", layers, width, kv_heads, size),
        linear(f"{attention}/v/kernel", f"{names}.attn_v.weight", layers, (width, kv_heads, size)),
        linear(f"{attention}/o/kernel", f"{names}.attn_output.weight", layers, (heads, size, width), 2),
    ]
    table += [linear(f"{ours}/swiglu/{n}/kernel", f"{names}.ffn_{n}.weight", layers) for n in ("gate", "up", "down")]
    return table if llama["tie_word_embeddings"] else [*table, same("head", "output.weight")]


tokenizer, beside = _gguf_tokenizer.tokenizer, _gguf_tokenizer.beside
