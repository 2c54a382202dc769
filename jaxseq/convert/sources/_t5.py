"""Shared by T5 and Switch Transformers: the names of transformers' encoder-decoders."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import base
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, linear, norm, same

ACTIVATIONS = {"relu": ("relu", False), "gated-gelu": ("gelu_tanh", True), "gated-silu": ("silu", True)}


def complete(theirs: dict, tensors: Mapping[str, Any]) -> dict:
    """The tensors show whether the head is tied to the embedding; the flag says only whether it is scaled."""
    scaled = theirs.get("scale_decoder_outputs", theirs.get("tie_word_embeddings", True))
    head, embedding = (tensors.get(name) for name in ("lm_head.weight", "shared.weight"))
    tied = head is None or embedding is None or np.array_equal(np.asarray(head), np.asarray(embedding))
    return theirs | {"tie_word_embeddings": tied, "scale_decoder_outputs": scaled}


def rename(names: set[str]) -> dict[str, str]:
    """Drops the unused table of relative positions that early files have for cross-attention."""
    unread = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    return {name: name for name in names if name != unread}


def aliases(theirs: dict) -> dict:
    names = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    names += ["lm_head.weight"] if theirs.get("tie_word_embeddings", True) else []
    return dict.fromkeys(names, "shared.weight")


def config(source: str, theirs: dict) -> ConfigDict:
    activation, gated = _fields.choice(source, theirs, "feed_forward_proj", ACTIVATIONS, "relu")
    cfg = base("encoder_decoder")
    cfg.model.update(
        vocab=theirs["vocab_size"], width=theirs["d_model"], encoder_layers=theirs["num_layers"],
        decoder_layers=theirs.get("num_decoder_layers") or theirs["num_layers"], heads=theirs["num_heads"],
        head_size=theirs["d_kv"], hidden=theirs["d_ff"], activation=activation, gated=gated,
        buckets=theirs["relative_attention_num_buckets"], max_distance=theirs.get("relative_attention_max_distance", 128),
        norm_eps=float(theirs["layer_norm_epsilon"]), tied=theirs.get("tie_word_embeddings", True),
        scaled_head=theirs.get("scale_decoder_outputs", theirs.get("tie_word_embeddings", True)),
    )  # fmt: skip
    cfg.train.objective = "span"
    return cfg


def describe(model: nn.Module) -> dict:
    shape = model.shape
    return {
        "is_encoder_decoder": True,
        "vocab_size": model.vocab,
        "d_model": shape.width,
        "d_kv": shape.head_size,
        "d_ff": shape.hidden,
        "num_layers": model.encoder_layers,
        "num_decoder_layers": model.decoder_layers,
        "num_heads": shape.heads,
        "relative_attention_num_buckets": shape.buckets,
        "relative_attention_max_distance": shape.max_distance,
        "layer_norm_epsilon": shape.norm_eps,
        "dropout_rate": shape.dropout,
        "tie_word_embeddings": model.tied,
        "scale_decoder_outputs": model.scaled_head,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def table(theirs: dict) -> list[Entry]:
    """The table without the feed-forwards."""
    entries = [same("embedding", "shared.weight")]
    if not theirs.get("tie_word_embeddings", True):
        entries.append(same("head", "lm_head.weight"))
    for stack in ("encoder", "decoder"):
        first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        entries += [same(f"{stack}/relative/table", first), *norm(f"{stack}/final_norm", f"{stack}.final_layer_norm", bias=False)]
    return entries


def stacks(theirs: dict) -> dict[str, int]:
    return {"encoder": theirs["num_layers"], "decoder": theirs.get("num_decoder_layers") or theirs["num_layers"]}


def attentions(theirs: dict, stack: str, ours: str, layers: Sequence[int]) -> list[Entry]:
    """The attentions and all norms of one layer."""
    width, heads, size = theirs["d_model"], theirs["num_heads"], theirs["d_kv"]
    names = f"{stack}.block.{{layer}}.layer"
    parts = [("attention", "SelfAttention")] + ([("cross", "EncDecAttention")] if stack == "decoder" else [])
    entries = norm(f"{ours}/norm_mlp", f"{names}.{len(parts)}.layer_norm", layers, bias=False)
    for i, (part, other) in enumerate(parts):
        entries += norm(f"{ours}/norm_{part}", f"{names}.{i}.layer_norm", layers, bias=False)
        for name in "qkvo":
            shape, inputs = ((heads, size, width), 2) if name == "o" else ((width, heads, size), 1)
            entries.append(linear(f"{ours}/{part}/{name}/kernel", f"{names}.{i}.{other}.{name}.weight", layers, shape, inputs))
    return entries


def feed_forward(stack: str) -> str:
    """The name of the feed-forward's part of a layer."""
    return f"{stack}.block.{{layer}}.layer.{2 if stack == 'decoder' else 1}"
