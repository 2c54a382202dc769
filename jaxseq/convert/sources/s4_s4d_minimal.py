"""The minimal S4D layer of state-spaces/s4 (models/s4/s4d.py): kernel.*, D, output_linear.*; single layers."""

from flax import linen as nn

from jaxseq.convert._table import Entry, reshaped, same
from jaxseq.mixers.s4d import S4D


def recognises(theirs: dict, names: set[str]) -> bool:
    return {"kernel.C", "kernel.log_A_real", "output_linear.0.weight"} <= names


def module(theirs: dict) -> S4D:
    return S4D(width=theirs["d_model"], state_size=theirs.get("d_state", 64), input_map=False)


def describe(model: nn.Module) -> dict | None:
    if not isinstance(model, S4D) or model.input_map or model.discretisation != "zoh":
        return None
    return {"d_model": model.width, "d_state": model.state_size, "transposed": False}


def _output(w):
    """Their output projection is a convolution of width 1."""
    return (w[:, :, 0].T.reshape(w.shape[1], 2, -1),)


def entries(theirs: dict) -> list[Entry]:
    width = theirs["d_model"]
    names = {"log_dt": "kernel.log_dt", "A_log": "kernel.log_A_real", "A_imag": "kernel.A_imag", "C": "kernel.C", "D": "D"}
    return [
        *(same(ours, name) for ours, name in names.items()),
        Entry(("out/kernel",), ("output_linear.0.weight",), _output, lambda w: (w.reshape(width, -1).T[:, :, None],)),
        reshaped("out/bias", "output_linear.0.bias", (2, width), (2 * width,)),
    ]
