"""Vision Transformers: transformers' ViTForImageClassification, and ViTModel without its pooler."""

import re
from collections.abc import Iterable

from ml_collections import ConfigDict

from jaxseq.config import base, finish
from jaxseq.convert._table import Entry, norm, reshaped, same
from jaxseq.convert.sources.hf_bert import ACTIVATIONS, attention, biased
from jaxseq.errors import UserError
from jaxseq.models.vit import ViT

PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
# published files spell a layer like BERT's
OLD = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "vit"


def rename(names: set[str]) -> dict[str, str]:
    def modern(name: str) -> str:
        name = name if name.startswith(("vit.", "classifier.")) else f"vit.{name}"
        layer = re.fullmatch(r"vit\.encoder\.layer\.(\d+)\.(.*)\.(\w+)", name)
        return f"vit.layers.{layer[1]}.{OLD.get(layer[2], layer[2])}.{layer[3]}" if layer else name

    return {modern(name): name for name in names}


def complete(theirs: dict, names: Iterable[str]) -> dict:
    kind = "ViTForImageClassification" if "classifier.weight" in names else "ViTModel"
    return theirs | {"architectures": [kind]}


def _classes(theirs: dict) -> int:
    bare = theirs.get("architectures") == ["ViTModel"]
    return 0 if bare else len(theirs.get("id2label") or "ab")


def config(theirs: dict) -> ConfigDict:
    if not theirs.get("qkv_bias", True) or theirs["hidden_act"] not in ACTIVATIONS:
        raise UserError(f"hf/vit reads models with biases and one of {', '.join(ACTIVATIONS)}; this one differs")
    cfg = base("vit")
    cfg.model.update(
        size=theirs["image_size"], patch=theirs["patch_size"], channels=theirs["num_channels"], classes=_classes(theirs) or None,
        width=theirs["hidden_size"], layers=theirs["num_hidden_layers"], heads=theirs["num_attention_heads"],
        hidden=theirs["intermediate_size"], norm_eps=theirs["layer_norm_eps"], activation=ACTIVATIONS[theirs["hidden_act"]],
    )  # fmt: skip
    cfg.train.objective = "classification"
    return finish(cfg)


def describe(model) -> dict | None:
    activations = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    if not isinstance(model, ViT) or model.activation not in activations:
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
        "id2label": {str(n): f"LABEL_{n}" for n in range(model.classes or 2)},
        "label2id": {f"LABEL_{n}": n for n in range(model.classes or 2)},
    }


def entries(theirs: dict) -> list[Entry]:
    layers, width, heads = range(theirs["num_hidden_layers"]), theirs["hidden_size"], theirs["num_attention_heads"]
    embeddings, ours, names = "vit.embeddings", "blocks", "vit.layers.{layer}"
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
        *biased(f"{ours}/mlp/up", f"{names}.mlp.fc1", layers),
        *biased(f"{ours}/mlp/down", f"{names}.mlp.fc2", layers),
        *attention(f"{ours}/attention", f"{names}.attention", layers, width, heads, PROJECTIONS),
        *norm("final_norm", "vit.layernorm"),
    ]  # fmt: skip
    return table + (biased("classifier", "classifier") if _classes(theirs) else [])
