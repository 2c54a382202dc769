"""Switch Transformers: transformers' SwitchTransformersForConditionalGeneration, T5 with experts in every n-th layer."""

import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, linear
from jaxseq.convert.sources import _t5
from jaxseq.convert.sources._t5 import aliases, complete
from jaxseq.models.encoder_decoder import EncoderDecoder

__all__ = ["aliases", "complete", "config", "describe", "entries", "recognises"]


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "switch_transformers"


def _every(theirs: dict) -> int:
    every = theirs["encoder_sparse_step"]
    _fields.wanted("hf/switch_transformers", theirs, decoder_sparse_step=every, router_bias=False)
    return every


def config(theirs: dict) -> ConfigDict:
    _fields.wanted("hf/switch_transformers", theirs, dense_act_fn="relu")
    cfg = _t5.config("hf/switch_transformers", theirs | {"feed_forward_proj": "relu"})
    cfg.model.update(
        sparse_every=_every(theirs), experts=theirs["num_experts"], expert_z_loss=theirs.get("router_z_loss_coef", 0.001),
        expert_balance_loss=theirs.get("router_aux_loss_coef", 0.001), expert_jitter=theirs.get("router_jitter_noise", 0.01),
    )  # fmt: skip
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    if not isinstance(model, EncoderDecoder) or not model.shape.sparse_every or model.shape.gated:
        return None
    shape, experts = model.shape, dict(model.shape.experts)
    if shape.activation != "relu" or experts["capacity_factor"] is not None:
        return None
    every, layers = shape.sparse_every, {"encoder": model.encoder_layers, "decoder": model.decoder_layers}
    steps = {f"{stack}_sparse_step": every for stack in layers}
    counts = {f"num_sparse_{stack}_layers": count // every for stack, count in layers.items()}
    own = {
        "architectures": ["SwitchTransformersForConditionalGeneration"],
        "model_type": "switch_transformers",
        "dense_act_fn": "relu",
        "num_experts": experts["experts"],
        "router_bias": False,
        "router_dtype": "float32",
        "router_jitter_noise": experts["jitter"],
        "router_aux_loss_coef": experts["balance_loss"],
        "router_z_loss_coef": experts["z_loss"],
    }
    return own | steps | counts | _t5.describe(model)


def entries(theirs: dict) -> list[Entry]:
    table, every = _t5.table(theirs), _every(theirs)
    for stack, count in _t5.stacks(theirs).items():
        for i in range(max(every, 1)):
            ours, layers = f"{stack}/blocks/layer_{i}", range(i, count, max(every, 1))
            table += _t5.attentions(theirs, stack, ours, layers)
            names = f"{_t5.feed_forward(stack)}.mlp"
            if every and i == 1 % every:
                table.append(linear(f"{ours}/moe/router/kernel", f"{names}.router.classifier.weight", layers))
                table += [_experts(f"{ours}/moe/up", f"{names}.experts", "wi", theirs["num_experts"], layers)]
                table += [_experts(f"{ours}/moe/down", f"{names}.experts", "wo", theirs["num_experts"], layers)]
            else:
                for own, other in (("up", "wi"), ("down", "wo")):
                    table.append(linear(f"{ours}/mlp/{own}/kernel", f"{names}.{other}.weight", layers))
    return table


def _experts(ours: str, theirs: str, name: str, count: int, layers) -> Entry:
    """Their matrices, one per expert, as our stacked array."""
    names = tuple(f"{theirs}.expert_{e}.{name}.weight" for e in range(count))
    return Entry((ours,), names, lambda *w: (np.stack([x.T for x in w]),), lambda w: tuple(x.T for x in w), layers)
