"""Longformer: transformers' LongformerModel, LongformerForMaskedLM and LongformerForSequenceClassification.

In transformers the caller of a model gives the global tokens. Ours are the first `model.global_tokens` tokens of each document,
none if the config does not say so, and one in a classifier, as in transformers; a call can name others by `global_mask`. A config
that we write has this number as "global_tokens", which transformers does not read: there, give `global_attention_mask`.
Positions are counted over all tokens that `pos` does not call padding; transformers also leaves out tokens with the padding's id.
"""

from collections.abc import Iterable

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import base, finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, norm, same
from jaxseq.convert.sources import hf_bert
from jaxseq.convert.sources.hf_bert import biased, embedded
from jaxseq.errors import UserError
from jaxseq.models.sparse_encoder import SparseEncoder

HEADS = {  # masked_head, pooler, classifier
    "LongformerModel": (False, True, False),
    "LongformerForMaskedLM": (True, False, False),
    "LongformerForSequenceClassification": (False, True, True),
}
GLOBAL = {"global_q": "self.query_global", "global_k": "self.key_global", "global_v": "self.value_global"}
WINDOW, IDS = _fields.Number(2, 1 << 24), _fields.Number(0, 1 << 20)


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "longformer"


def rename(names: set[str]) -> dict[str, str]:
    return {name: name for name in names if not name.endswith("position_ids")}


def complete(theirs: dict, names: Iterable[str]) -> dict:
    """Adds the heads that the file has, because the class in a published config does not say which."""
    names = {name.removeprefix("longformer.") for name in names}
    kind = "LongformerForSequenceClassification" if "classifier.out_proj.weight" in names else "LongformerModel"
    kind = "LongformerForMaskedLM" if "lm_head.dense.weight" in names else kind
    return theirs | {"architectures": [kind], "add_pooling_layer": "pooler.dense.weight" in names}


def _heads(theirs: dict) -> tuple[bool, bool, int]:
    """(masked_head, pooler, classes)"""
    kind = (theirs.get("architectures") or ["LongformerModel"])[0]
    if kind not in HEADS:
        raise UserError(f"hf/longformer reads no {kind}; it reads: {', '.join(HEADS)}")
    masked, pooler, classifier = HEADS[kind]
    classes = len(theirs.get("id2label") or "ab") if classifier else 0
    return masked, classes > 0 or theirs.get("add_pooling_layer", pooler), classes


def _window(theirs: dict) -> int:
    windows = theirs["attention_window"] if isinstance(theirs["attention_window"], list) else [theirs["attention_window"]]
    for window in windows:
        _fields.number({"attention_window": window}, "attention_window", WINDOW)
    if len(set(windows)) != 1 or windows[0] % 2:
        shown = _fields.shown(theirs["attention_window"])
        raise UserError(f"hf/longformer reads models with one even attention_window for all layers, and this config has {shown}")
    return windows[0]


def config(theirs: dict) -> ConfigDict:
    theirs = {"attention_window": 512, "pad_token_id": 1, "layer_norm_eps": 1e-12, "type_vocab_size": 2} | theirs
    _fields.wanted("hf/longformer", theirs, position_embedding_type="absolute", is_decoder=False)
    masked, pooler, classes = _heads(theirs)
    if masked:
        _fields.wanted("hf/longformer", theirs, hidden_act="gelu")  # the head's is always this one
    cfg = base("sparse_encoder")
    cfg.model.update(
        vocab=theirs["vocab_size"], width=theirs["hidden_size"], layers=theirs["num_hidden_layers"],
        heads=theirs["num_attention_heads"], hidden=theirs["intermediate_size"], max_positions=theirs["max_position_embeddings"],
        types=theirs["type_vocab_size"], norm_eps=theirs["layer_norm_eps"],
        activation=_fields.choice("hf/longformer", theirs, "hidden_act", hf_bert.ACTIVATIONS, "gelu"),
        masked_head=masked, pooler=pooler, classes=classes or None, attention="window", window=_window(theirs),
        first_position=_fields.number(theirs, "pad_token_id", IDS) + 1,
        global_tokens=_fields.number({"global_tokens": int(classes > 0)} | theirs, "global_tokens", IDS),
    )  # fmt: skip
    cfg.train.objective = "classification" if classes else "masked"
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    if not isinstance(model, SparseEncoder) or model.attention != "window" or model.distinct or model.embedding_width:
        return None
    kinds = {(masked, pooler, classes): name for name, (masked, _, classes) in HEADS.items() for pooler in (False, True)}
    theirs = hf_bert.described(model, "longformer", kinds)
    if not theirs or not model.first_position or (model.masked_head and model.activation != "gelu"):
        return None
    return theirs | {
        "add_pooling_layer": model.pooler,
        "attention_window": [model.window] * model.layers,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": model.first_position - 1,
        "global_tokens": model.global_tokens,
    }


def aliases(theirs: dict) -> dict:
    if not _heads(theirs)[0]:
        return {}
    return {"lm_head.decoder.weight": "longformer.embeddings.word_embeddings.weight", "lm_head.decoder.bias": "lm_head.bias"}


def entries(theirs: dict) -> list[Entry]:
    masked, pooler, classes = _heads(theirs)
    prefix = "longformer." if masked or classes else ""
    table = embedded(f"{prefix}embeddings") + hf_bert.encoder_layers(theirs, prefix, hf_bert.PROJECTIONS | GLOBAL)
    if pooler:
        table += biased("pool", "classifier.dense" if classes else f"{prefix}pooler.dense")
    if classes:
        table += biased("classifier", "classifier.out_proj")
    if masked:
        table += [*biased("masked/transform", "lm_head.dense"), same("masked/bias", "lm_head.bias")]
        table += norm("masked/norm", "lm_head.layer_norm")
    return table
