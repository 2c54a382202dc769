"""BERT: transformers' BertModel, BertForMaskedLM, BertForPreTraining and BertForSequenceClassification.

The next-sentence head of BertForPreTraining becomes our classifier with two classes.
"""

from collections.abc import Iterable, Sequence

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import base, finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, linear, norm, reshaped, same
from jaxseq.errors import UserError
from jaxseq.models.encoder import Encoder

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
# the heads of the model: masked_head, pooler, classifier
HEADS = {
    "BertModel": (False, True, False),
    "BertForMaskedLM": (True, False, False),
    "BertForPreTraining": (True, True, True),
    "BertForSequenceClassification": (False, True, True),
}

TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "bert"


def rename(names: set[str]) -> dict[str, str]:
    """Early checkpoints call a norm's scale gamma and its bias beta; some files have a buffer of the positions 0, 1, 2 …"""
    modern = lambda name: name.replace("Norm.gamma", "Norm.weight").replace("Norm.beta", "Norm.bias")  # noqa: E731
    return {modern(name): name for name in names if not name.endswith("position_ids")}


def complete(theirs: dict, names: Iterable[str]) -> dict:
    """Adds the heads that the file has, because the class in a published config does not say which."""
    names = {name.removeprefix("bert.") for name in names}
    masked, two = any(name.startswith("cls.predictions.") for name in names), "cls.seq_relationship.weight" in names
    kind = "BertForPreTraining" if masked and two else "BertForMaskedLM" if masked else "BertModel"
    kind = "BertForSequenceClassification" if "classifier.weight" in names else kind
    return theirs | {"architectures": [kind], "add_pooling_layer": "pooler.dense.weight" in names}


def _heads(theirs: dict) -> tuple[bool, bool, int]:
    """(masked_head, pooler, classes)"""
    kind = (theirs.get("architectures") or ["BertModel"])[0]
    if kind not in HEADS:
        raise UserError(f"hf/bert reads no {kind}; it reads: {', '.join(HEADS)}")
    masked, pooler, classifier = HEADS[kind]
    classes = 2 if kind == "BertForPreTraining" else len(theirs.get("id2label") or "ab")
    return masked, pooler and theirs.get("add_pooling_layer", True), classes if classifier else 0


def config(theirs: dict) -> ConfigDict:
    _fields.wanted("hf/bert", theirs, position_embedding_type="absolute", is_decoder=False)
    activation = _fields.choice("hf/bert", theirs, "hidden_act", ACTIVATIONS)
    masked, pooler, classes = _heads(theirs)
    cfg = base("encoder")
    cfg.model.update(
        vocab=theirs["vocab_size"], width=theirs["hidden_size"], layers=theirs["num_hidden_layers"],
        heads=theirs["num_attention_heads"], hidden=theirs["intermediate_size"], max_positions=theirs["max_position_embeddings"],
        types=theirs["type_vocab_size"], norm_eps=theirs["layer_norm_eps"], activation=activation,
        masked_head=masked, pooler=pooler, classes=classes or None,
    )  # fmt: skip
    cfg.train.objective = "classification" if classes and not masked else "masked"
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    if type(model) is not Encoder or model.distinct or model.embedding_width:
        return None
    kinds = {heads: name for name, heads in HEADS.items()} | {(False, False, False): "BertModel"}
    theirs = described(model, "bert", kinds)
    return theirs and theirs | {"add_pooling_layer": model.pooler}


def described(model: Encoder, kind: str, kinds: dict[tuple[bool, bool, bool], str]) -> dict | None:
    """The part of the config that BERT and models like it share; kinds: {heads: their class}."""
    activations = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    heads = model.masked_head, model.pooler, model.classes > 0
    if model.positions != "learned" or model.norm_first or not model.types:
        return None
    if model.activation not in activations or heads not in kinds or (model.masked_head and model.classes not in (0, 2)):
        return None
    return {
        "architectures": [kinds[heads]],
        "model_type": kind,
        "vocab_size": model.vocab,
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "intermediate_size": model.hidden,
        "max_position_embeddings": model.max_positions,
        "type_vocab_size": model.types,
        "layer_norm_eps": model.norm_eps,
        "hidden_act": activations[model.activation],
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.dropout,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
        "id2label": {str(n): f"LABEL_{n}" for n in range(model.classes or 2)},
        "label2id": {f"LABEL_{n}": n for n in range(model.classes or 2)},
    }


def aliases(theirs: dict) -> dict:
    return TIED if _heads(theirs)[0] else {}


def entries(theirs: dict) -> list[Entry]:
    masked, pooler, classes = _heads(theirs)
    prefix = "bert." if masked or classes else ""
    table = embedded(f"{prefix}embeddings") + encoder_layers(theirs, prefix, PROJECTIONS)
    if pooler:
        table += biased("pool", f"{prefix}pooler.dense")
    if masked:
        table += masked_head("cls.predictions")
    if classes:
        table += biased("classifier", "cls.seq_relationship" if masked else "classifier")
    return table


PROJECTIONS = {"q": "self.query", "k": "self.key", "v": "self.value", "o": "output.dense"}


def encoder_layers(theirs: dict, prefix: str, projections: dict[str, str]) -> list[Entry]:
    """Entries of all layers; projections: see `attention`."""
    layers, width, heads = range(theirs["num_hidden_layers"]), theirs["hidden_size"], theirs["num_attention_heads"]
    ours, names = "blocks", f"{prefix}encoder.layer.{{layer}}"
    return [
        *norm(f"{ours}/norm_attention", f"{names}.attention.output.LayerNorm", layers),
        *norm(f"{ours}/norm_mlp", f"{names}.output.LayerNorm", layers),
        *biased(f"{ours}/mlp/up", f"{names}.intermediate.dense", layers),
        *biased(f"{ours}/mlp/down", f"{names}.output.dense", layers),
        *attention(f"{ours}/attention", f"{names}.attention", layers, width, heads, projections),
    ]


def masked_head(theirs: str) -> list[Entry]:
    """Entries of the masked-language-model head."""
    table = [*biased("masked/transform", f"{theirs}.transform.dense"), same("masked/bias", f"{theirs}.bias")]
    return table + norm("masked/norm", f"{theirs}.transform.LayerNorm")


def embedded(theirs: str) -> list[Entry]:
    """Entries of the tables of tokens, positions and types, and of the norm of their sum."""
    tables = {"embedding": "word_embeddings", "position": "position_embeddings", "type": "token_type_embeddings"}
    return [same(ours, f"{theirs}.{name}.weight") for ours, name in tables.items()] + norm("first_norm", f"{theirs}.LayerNorm")


def biased(ours: str, theirs: str, layers: Sequence[int] | None = None) -> list[Entry]:
    """Entries of a linear map with a bias."""
    return [linear(f"{ours}/kernel", f"{theirs}.weight", layers), same(f"{ours}/bias", f"{theirs}.bias", layers)]


def attention(ours: str, theirs: str, layers: Sequence[int], width: int, heads: int, names: dict[str, str]) -> list[Entry]:
    """Entries of projections with biases; names: theirs of q, k, v, o and others like q."""
    table = []
    for name, other in names.items():
        shape, inputs = ((heads, width // heads, width), 2) if name == "o" else ((width, heads, width // heads), 1)
        table.append(linear(f"{ours}/{name}/kernel", f"{theirs}.{other}.weight", layers, shape, inputs))
        table.append(reshaped(f"{ours}/{name}/bias", f"{theirs}.{other}.bias", shape[inputs:], (width,), layers))
    return table
