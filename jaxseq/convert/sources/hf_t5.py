"""T5, T5 v1.1 and mT5: transformers' T5ForConditionalGeneration and MT5ForConditionalGeneration."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import finish
from jaxseq.convert._table import Entry, linear
from jaxseq.convert.sources import _t5
from jaxseq.convert.sources._t5 import aliases, rename
from jaxseq.models.encoder_decoder import EncoderDecoder

__all__ = ["aliases", "complete", "config", "describe", "entries", "recognises", "rename"]


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") in ("t5", "mt5")


def complete(theirs: dict, tensors: Mapping[str, Any]) -> dict:
    """mT5 never scales the inputs of its head, even if its config says that the head is tied."""
    return _t5.complete({"scale_decoder_outputs": False} | theirs if theirs.get("model_type") == "mt5" else theirs, tensors)


def config(theirs: dict) -> ConfigDict:
    return finish(_t5.config("hf/t5", theirs))


def describe(model: nn.Module) -> dict | None:
    kinds = {ours: name for name, ours in _t5.ACTIVATIONS.items()}
    if not isinstance(model, EncoderDecoder) or model.shape.sparse_every:
        return None
    kind = kinds.get((model.shape.activation, model.shape.gated))
    own = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "feed_forward_proj": kind}
    return own | _t5.describe(model) if kind else None


def entries(theirs: dict) -> list[Entry]:
    gated = "gated" in theirs.get("feed_forward_proj", "relu")
    maps = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if gated else {"up": "wi", "down": "wo"}
    table = _t5.table(theirs)
    for stack, count in _t5.stacks(theirs).items():
        ours, names, layers = f"{stack}/blocks/layer_0", f"{_t5.feed_forward(stack)}.DenseReluDense", range(count)
        table += _t5.attentions(theirs, stack, ours, layers)
        table += [linear(f"{ours}/mlp/{own}/kernel", f"{names}.{other}.weight", layers) for own, other in maps.items()]
    return table
