"""Stacks of the `sru` package, version 2: rnn_lst.N.{weight, weight_c, bias, scale_x}; one direction, no layer norm."""

import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import base, finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, reshaped, same
from jaxseq.models.rnn import RNN

PLAIN = {"has_skip_term": True, "custom_m": None, "projection_size": 0}
PLAIN |= dict.fromkeys(("bidirectional", "layer_norm", "use_tanh", "v1"), False)


def recognises(theirs: dict, names: set[str]) -> bool:
    return {"rnn_lst.0.weight", "rnn_lst.0.weight_c"} <= names


def config(theirs: dict) -> ConfigDict:
    _fields.wanted("sru", theirs, **PLAIN)
    cfg = base("rnn")
    cfg.model.cell, cfg.model.inputs, cfg.model.hidden = "sru", theirs["input_size"], theirs["hidden_size"]
    cfg.model.layers = theirs.get("num_layers", 2)
    cfg.model.dropout, cfg.model.forget_bias = float(theirs.get("dropout", 0.0)), 0.0
    cfg.model.highway_bias = float(theirs.get("highway_bias", 0.0))
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    if not isinstance(model, RNN) or model.cell != "sru":
        return None
    sizes = {"input_size": model.inputs, "hidden_size": model.hidden, "num_layers": model.layers, "dropout": model.dropout}
    return sizes | {"highway_bias": model.highway_bias, "rescale": True, "bidirectional": False, "layer_norm": False}


def entries(theirs: dict) -> list[Entry]:
    """Their matrix is (inputs, hidden x parts), with the parts of a channel adjacent."""
    hidden, table = theirs["hidden_size"], []
    for layer in range(theirs.get("num_layers", 2)):
        inputs = theirs["input_size"] if layer == 0 else hidden
        parts = 3 if inputs == hidden else 4

        def forward(w, parts=parts):
            return (np.swapaxes(w.reshape(-1, hidden, parts), 1, 2),)

        def backward(w, parts=parts):
            return (np.swapaxes(w, 1, 2).reshape(-1, hidden * parts),)

        ours, name = f"layer_{layer}_forward", f"rnn_lst.{layer}"
        table.append(Entry((f"{ours}/in/kernel",), (f"{name}.weight",), forward, backward))
        table.append(reshaped(f"{ours}/recurrent", f"{name}.weight_c", (2, hidden), (2 * hidden,)))
        table.append(reshaped(f"{ours}/bias", f"{name}.bias", (2, hidden), (2 * hidden,)))
        table.append(same(f"{ours}/scale", f"{name}.scale_x"))
    return table
