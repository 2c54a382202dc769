"""Vision Transformers: transformers' ViTForImageClassification, and ViTModel with or without its pooler."""

import re
from collections.abc import Iterable

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import base, finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, norm, reshaped, same
from jaxseq.convert.sources.hf_bert import ACTIVATIONS, attention, biased
from jaxseq.models.vit import ViT

PROJECTIONS = {"q": "attention.query", "k": "attention.key", "v": "attention.value", "o": "output.dense"}
# {name of a layer's part in transformers 5's memory: name in files}
SAVED = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "vit"


def rename(names: set[str]) -> dict[str, str]:
    prefix = "vit." if any(name.startswith("classifier.") for name in names) else ""

    def saved(name: str) -> str:
        if name.startswith("classifier."):
            return name
        name = name.removeprefix("vit.")
        layer = re.fullmatch(r"layers\.(\d+)\.(.*)\.(\w+)", name)
        return prefix + (f"encoder.layer.{layer[1]}.{SAVED.get(layer[2], layer[2])}.{layer[3]}" if layer else name)

    return {saved(name): name for name in names}


def complete(theirs: dict, names: Iterable[str]) -> dict:
    kind = "ViTForImageClassification" if "classifier.weight" in names else "ViTModel"
    pooler = any(name.endswith("pooler.dense.weight") for name in names)
    return theirs | {"architectures": [kind], "add_pooling_layer": pooler}


def _classes(theirs: dict) -> int:
    bare = theirs.get("architectures") == ["ViTModel"]
    return 0 if bare else len(theirs.get("id2label") or "ab")


def config(theirs: dict) -> ConfigDict:
    _fields.wanted("hf/vit", theirs, qkv_bias=True)
    if theirs.get("add_pooling_layer"):
        _fields.wanted("hf/vit", theirs, pooler_act="tanh", pooler_output_size=theirs["hidden_size"])
    activation = _fields.choice("hf/vit", theirs, "hidden_act", ACTIVATIONS)
    cfg = base("vit")
    cfg.model.update(
        size=theirs["image_size"], patch=theirs["patch_size"], channels=theirs["num_channels"], classes=_classes(theirs) or None,
        width=theirs["hidden_size"], layers=theirs["num_hidden_layers"], heads=theirs["num_attention_heads"],
        hidden=theirs["intermediate_size"], norm_eps=theirs["layer_norm_eps"], activation=activation,
        pooler=bool(theirs.get("add_pooling_layer", False)),
    )  # fmt: skip
    cfg.train.objective = "classification"
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    activations = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    if not isinstance(model, ViT) or model.activation not in activations or (model.pooler and model.classes):
        return None
    return {
        "architectures": ["ViTForImageClassification" if model.classes else "ViTModel"],
        "model_type": "vit",
        "image_size": model.size,
        "patch_size": model.patch,
        "num_channels": model.channels,
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "intermediate_size": model.hidden,
        "layer_norm_eps": model.norm_eps,
        "hidden_act": activations[model.activation],
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.dropout,
        "qkv_bias": True,
        "add_pooling_layer": model.pooler,
        "id2label": {str(n): f"LABEL_{n}" for n in range(model.classes or 2)},
        "label2id": {f"LABEL_{n}": n for n in range(model.classes or 2)},
    }


def entries(theirs: dict) -> list[Entry]:
    layers, width, heads = range(theirs["num_hidden_layers"]), theirs["hidden_size"], theirs["num_attention_heads"]
    prefix = "vit." if (classes := _classes(theirs)) else ""
    embeddings, ours, names = f"{prefix}embeddings", "blocks", f"{prefix}encoder.layer.{{layer}}"
    length = 1 + (theirs["image_size"] // theirs["patch_size"]) ** 2
    convolution = f"{embeddings}.patch_embeddings.projection"
    table = [
        # a convolution's (outputs, channels, rows, columns)
        Entry(
            ("patches/kernel",), (f"{convolution}.weight",),
            lambda w: (w.transpose(2, 3, 1, 0),), lambda w: (w.transpose(3, 2, 0, 1),),
        ),
        same("patches/bias", f"{convolution}.bias"),
        reshaped("class", f"{embeddings}.cls_token", (width,), (1, 1, width)),
        reshaped("position", f"{embeddings}.position_embeddings", (length, width), (1, length, width)),
        *norm(f"{ours}/norm_attention", f"{names}.layernorm_before", layers),
        *norm(f"{ours}/norm_mlp", f"{names}.layernorm_after", layers),
        *biased(f"{ours}/mlp/up", f"{names}.intermediate.dense", layers),
        *biased(f"{ours}/mlp/down", f"{names}.output.dense", layers),
        *attention(f"{ours}/attention", f"{names}.attention", layers, width, heads, PROJECTIONS),
        *norm("final_norm", f"{prefix}layernorm"),
    ]  # fmt: skip
    table += biased("pool", f"{prefix}pooler.dense") if theirs.get("add_pooling_layer") else []
    return table + (biased("classifier", "classifier") if classes else [])
