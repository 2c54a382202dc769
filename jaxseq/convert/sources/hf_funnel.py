"""Funnel Transformer: transformers' FunnelModel, FunnelBaseModel, FunnelForMaskedLM and FunnelForSequenceClassification.

Padding has no effect in ours. In transformers the last tokens before padding are pooled with it, so that its embedding enters
their row: with B blocks the outputs of a padded row are equal only if it has a multiple of 2^(B - 1) tokens after [CLS].
"""

from collections.abc import Iterable, Sequence

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import base, finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, linear, norm, reshaped, same
from jaxseq.convert.sources.hf_bert import ACTIVATIONS, biased
from jaxseq.errors import UserError
from jaxseq.models.funnel import Funnel

HEADS = {  # decoder, masked head, classifier
    "FunnelModel": (True, False, False),
    "FunnelBaseModel": (False, False, False),
    "FunnelForMaskedLM": (True, True, False),
    "FunnelForSequenceClassification": (False, False, True),
}
DEFAULTS = {"block_sizes": [4, 4, 4], "num_decoder_layers": 2, "layer_norm_eps": 1e-9, "hidden_act": "gelu_new"}
DEFAULTS |= {"pooling_type": "mean", "hidden_dropout": 0.1}
TIED = {"lm_head.weight": "funnel.embeddings.word_embeddings.weight"}
COUNT = _fields.Number(1, 999)


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "funnel"


def complete(theirs: dict, names: Iterable[str]) -> dict:
    """Adds the head that the file has, because the class in a published config does not say which."""
    names = set(names)
    decoder = any(name.removeprefix("funnel.").startswith("decoder.") for name in names)
    kind = "FunnelForSequenceClassification" if "classifier.linear_out.weight" in names else "FunnelBaseModel"
    kind = "FunnelModel" if decoder else kind
    return theirs | {"architectures": ["FunnelForMaskedLM" if "lm_head.bias" in names else kind]}


def _heads(theirs: dict) -> tuple[bool, bool, int]:
    """(decoder, masked_head, classes)"""
    kind = (theirs.get("architectures") or ["FunnelModel"])[0]
    if kind not in HEADS:
        raise UserError(f"hf/funnel reads no {kind}; it reads: {', '.join(HEADS)}")
    decoder, masked, classifier = HEADS[kind]
    return decoder, masked, len(theirs.get("id2label") or "ab") if classifier else 0


def _blocks(theirs: dict) -> list[int]:
    """Layers of each block."""
    for field in ("block_sizes", "block_repeats"):
        for number in (counts := theirs.get(field) or []):
            _fields.number({field: number}, field, COUNT)
        if counts and len(counts) != len(theirs["block_sizes"]):
            raise UserError("block_sizes and block_repeats of the config differ in length; give the checkpoint's own config.json")
    return theirs["block_sizes"]


def config(theirs: dict) -> ConfigDict:
    theirs = DEFAULTS | theirs
    _fields.wanted("hf/funnel", theirs, attention_type="relative_shift", separate_cls=True, truncate_seq=True, pool_q_only=True)
    activation = _fields.choice("hf/funnel", theirs, "hidden_act", ACTIVATIONS)
    decoder, masked, classes = _heads(theirs)
    repeats = theirs.get("block_repeats") or []
    cfg = base("funnel")
    cfg.model.update(
        vocab=theirs["vocab_size"], width=theirs["d_model"], blocks=" ".join(map(str, _blocks(theirs))),
        repeats="" if set(repeats) <= {1} else " ".join(map(str, repeats)), heads=theirs["n_head"], head_size=theirs["d_head"],
        hidden=theirs["d_inner"], decoder=theirs["num_decoder_layers"] if decoder else 0, pool=theirs["pooling_type"],
        norm_eps=theirs["layer_norm_eps"], activation=activation, dropout=theirs["hidden_dropout"], masked_head=masked,
        classes=classes or None,
    )  # fmt: skip
    cfg.train.objective = "classification" if classes else "masked"
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    if not isinstance(model, Funnel):
        return None
    heads = model.decoder > 0, model.masked_head, model.classes > 0
    kinds = {own: name for name, own in HEADS.items()}
    activations = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    if heads not in kinds or model.activation not in activations:
        return None
    labels = range(model.classes or 2)
    return {
        "architectures": [kinds[heads]],
        "model_type": "funnel",
        "vocab_size": model.vocab,
        "d_model": model.width,
        "block_sizes": [layers for layers, _ in model.counts()],
        "block_repeats": [times for _, times in model.counts()],
        "num_decoder_layers": model.decoder or DEFAULTS["num_decoder_layers"],  # without a decoder it has no effect
        "n_head": model.heads,
        "d_head": model.head_size or model.width // model.heads,
        "d_inner": model.hidden,
        "pooling_type": model.pool,
        "layer_norm_eps": model.norm_eps,
        "hidden_act": activations[model.activation],
        "hidden_dropout": model.dropout,
        "attention_dropout": model.dropout,
        "attention_type": "relative_shift",
        "separate_cls": True,
        "truncate_seq": True,
        "pool_q_only": True,
        "tie_word_embeddings": True,
        "id2label": {str(n): f"LABEL_{n}" for n in labels},
        "label2id": {f"LABEL_{n}": n for n in labels},
    }


def aliases(theirs: dict) -> dict:
    return TIED if _heads(theirs)[1] else {}


def entries(theirs: dict) -> list[Entry]:
    theirs = DEFAULTS | theirs
    decoder, masked, classes = _heads(theirs)
    prefix = "funnel." if masked or classes else ""
    table = [same("embedding", f"{prefix}embeddings.word_embeddings.weight")]
    table += norm("first_norm", f"{prefix}embeddings.layer_norm")
    for i, layers in enumerate(_blocks(theirs)):
        names = f"{prefix}encoder.blocks.{i}"
        table += _layer(f"pool_{i}", f"{names}.0", theirs) if i else []
        if later := range(min(i, 1), layers):
            table += _layer(f"blocks_{i}", f"{names}.{{layer}}", theirs, later)
    if decoder:
        table += _layer("upper", f"{prefix}decoder.layers.{{layer}}", theirs, range(theirs["num_decoder_layers"]))
    if masked:
        table.append(same("masked_bias", "lm_head.bias"))
    if classes:
        table += biased("pooler", "classifier.linear_hidden") + biased("classifier", "classifier.linear_out")
    return table


def _layer(ours: str, names: str, theirs: dict, layers: Sequence[int] | None = None) -> list[Entry]:
    width, heads, size = theirs["d_model"], theirs["n_head"], theirs["d_head"]
    own, other = f"{ours}/attention", f"{names}.attention"
    table = [
        *norm(f"{ours}/norm_attention", f"{other}.layer_norm", layers),
        *norm(f"{ours}/norm_mlp", f"{names}.ffn.layer_norm", layers),
        *biased(f"{ours}/mlp/up", f"{names}.ffn.linear_1", layers),
        *biased(f"{ours}/mlp/down", f"{names}.ffn.linear_2", layers),
        *(linear(f"{own}/{n}/kernel", f"{other}.{n}_head.weight", layers, (width, heads, size)) for n in "qkv"),
        *(reshaped(f"{own}/{n}/bias", f"{other}.{n}_head.bias", (heads, size), (-1,), layers) for n in "kv"),
        linear(f"{own}/o/kernel", f"{other}.post_proj.weight", layers, (heads, size, width), 2),
        same(f"{own}/o/bias", f"{other}.post_proj.bias", layers),
    ]
    relative = {"r_w": "r_w_bias", "r_r": "r_r_bias", "r_s": "r_s_bias", "r_kernel": "r_kernel", "r_types": "seg_embed"}
    return table + [same(f"{own}/{a}", f"{other}.{b}", layers) for a, b in relative.items()]
