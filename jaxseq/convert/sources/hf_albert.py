"""ALBERT: transformers' AlbertModel, AlbertForMaskedLM and AlbertForSequenceClassification. Layers share weights."""

from collections.abc import Iterable

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import base, finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, norm, same
from jaxseq.convert.sources.hf_bert import ACTIVATIONS, attention, biased, described, embedded
from jaxseq.errors import UserError
from jaxseq.models.encoder import Encoder

HEADS = {  # masked_head, pooler, classifier
    "AlbertModel": (False, True, False),
    "AlbertForMaskedLM": (True, False, False),
    "AlbertForSequenceClassification": (False, True, True),
}
PROJECTIONS = {"q": "query", "k": "key", "v": "value", "o": "dense"}
LAYER = "encoder.albert_layer_groups.{layer}.albert_layers.0"


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "albert"


def rename(names: set[str]) -> dict[str, str]:
    return {name: name for name in names if not name.endswith("position_ids")}


def complete(theirs: dict, names: Iterable[str]) -> dict:
    """Adds the head that the file has, because the class in a published config does not say which."""
    names = set(names)
    kind = "AlbertForSequenceClassification" if "classifier.weight" in names else "AlbertModel"
    return theirs | {"architectures": ["AlbertForMaskedLM" if "predictions.bias" in names else kind]}


def _heads(theirs: dict) -> tuple[bool, bool, int]:
    """(masked_head, pooler, classes)"""
    kind = (theirs.get("architectures") or ["AlbertModel"])[0]
    if kind not in HEADS:
        raise UserError(f"hf/albert reads no {kind}; it reads: {', '.join(HEADS)}")
    masked, pooler, classifier = HEADS[kind]
    return masked, pooler, len(theirs.get("id2label") or "ab") if classifier else 0


def config(theirs: dict) -> ConfigDict:
    theirs = {"embedding_size": 128, "num_hidden_groups": 1, "layer_norm_eps": 1e-12} | theirs
    _fields.wanted("hf/albert", theirs, position_embedding_type="absolute", inner_group_num=1)
    activation = _fields.choice("hf/albert", theirs, "hidden_act", ACTIVATIONS)
    masked, pooler, classes = _heads(theirs)
    layers, groups = theirs["num_hidden_layers"], theirs["num_hidden_groups"]
    if layers % groups:
        raise UserError(f"hf/albert reads groups of equally many layers; this config has {layers=} in num_hidden_groups={groups}")
    cfg = base("encoder")
    cfg.model.update(
        vocab=theirs["vocab_size"], width=theirs["hidden_size"], layers=layers, distinct=groups,
        embedding_width=theirs["embedding_size"], heads=theirs["num_attention_heads"], hidden=theirs["intermediate_size"],
        max_positions=theirs["max_position_embeddings"], types=theirs["type_vocab_size"], norm_eps=theirs["layer_norm_eps"],
        activation=activation, masked_head=masked, pooler=pooler, classes=classes or None,
    )  # fmt: skip
    cfg.train.objective = "classification" if classes else "masked"
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    if type(model) is not Encoder or not model.distinct or not model.embedding_width:
        return None
    theirs = described(model, "albert", {heads: name for name, heads in HEADS.items()})
    more = {"embedding_size": model.embedding_width, "num_hidden_groups": model.distinct, "inner_group_num": 1}
    return theirs and theirs | more


def aliases(theirs: dict) -> dict:
    if not _heads(theirs)[0]:
        return {}
    embedding = "albert.embeddings.word_embeddings.weight"
    return {"predictions.decoder.weight": embedding, "predictions.decoder.bias": "predictions.bias"}


def entries(theirs: dict) -> list[Entry]:
    masked, pooler, classes = _heads(theirs)
    prefix = "albert." if masked or classes else ""
    layers, width, heads = range(theirs["num_hidden_groups"]), theirs["hidden_size"], theirs["num_attention_heads"]
    ours, names = "blocks", f"{prefix}{LAYER}"
    table = [
        *embedded(f"{prefix}embeddings"),
        *biased("project_in", f"{prefix}encoder.embedding_hidden_mapping_in"),
        *norm(f"{ours}/norm_attention", f"{names}.attention.LayerNorm", layers),
        *norm(f"{ours}/norm_mlp", f"{names}.full_layer_layer_norm", layers),
        *biased(f"{ours}/mlp/up", f"{names}.ffn", layers),
        *biased(f"{ours}/mlp/down", f"{names}.ffn_output", layers),
        *attention(f"{ours}/attention", f"{names}.attention", layers, width, heads, PROJECTIONS),
    ]
    if pooler:
        table += biased("pool", f"{prefix}pooler")
    if masked:
        table += [*biased("masked/transform", "predictions.dense"), same("masked/bias", "predictions.bias")]
        table += norm("masked/norm", "predictions.LayerNorm")
    return table + (biased("classifier", "classifier") if classes else [])
