"""Shared by torch.nn.LSTM and torch.nn.GRU: names, layout of gates, constructor arguments."""

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import base, finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, linear, reshaped
from jaxseq.models.rnn import CELLS, RNN


def config(cell: str, theirs: dict) -> ConfigDict:
    _fields.wanted(f"torch/{cell}", theirs, proj_size=0)
    cfg = base("rnn")
    cfg.model.cell, cfg.model.inputs, cfg.model.hidden = cell, theirs["input_size"], theirs["hidden_size"]
    cfg.model.layers = theirs.get("num_layers", 1)
    cfg.model.bidirectional, cfg.model.bias = theirs.get("bidirectional", False), theirs.get("bias", True)
    cfg.model.dropout, cfg.model.forget_bias = float(theirs.get("dropout", 0.0)), 0.0
    return finish(cfg)


def describe(cell: str, model: nn.Module) -> dict | None:
    if not isinstance(model, RNN) or model.cell != cell:
        return None
    sizes = {"input_size": model.inputs, "hidden_size": model.hidden, "num_layers": model.layers, "dropout": model.dropout}
    return sizes | {"bias": model.bias, "batch_first": True, "bidirectional": model.bidirectional}


def entries(cell: str, theirs: dict) -> list[Entry]:
    """The gates are blocks of rows in torch, in the same order as in the op."""
    hidden, gates, table = theirs["hidden_size"], len(CELLS[cell].GATES), []
    ways = {"forward": "", "backward": "_reverse"} if theirs.get("bidirectional") else {"forward": ""}
    for layer in range(theirs.get("num_layers", 1)):
        inputs = theirs["input_size"] if layer == 0 else hidden * len(ways)
        for way, suffix in ways.items():
            ours, name = f"layer_{layer}_{way}", f"l{layer}{suffix}"
            table.append(linear(f"{ours}/in/kernel", f"weight_ih_{name}", shape=(inputs, gates, hidden)))
            table.append(linear(f"{ours}/recurrent", f"weight_hh_{name}", shape=(hidden, gates, hidden)))
            if theirs.get("bias", True):
                shape, flat = (gates, hidden), (gates * hidden,)
                table.append(reshaped(f"{ours}/in_bias", f"bias_ih_{name}", shape, flat))
                table.append(reshaped(f"{ours}/recurrent_bias", f"bias_hh_{name}", shape, flat))
    return table
