"""S4D layers of state-spaces/s4 (S4Block with mode "diag"): layer.*, output_linear.*; single layers."""

from flax import linen as nn

from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, linear, reshaped, same
from jaxseq.mixers.s4d import S4D


def recognises(theirs: dict, names: set[str]) -> bool:
    return {"layer.kernel.C", "output_linear.0.weight"} <= names and "layer.kernel.P" not in names


def plain(source: str, theirs: dict) -> None:
    """Raises UserError for options that our layers do not have."""
    usual = {"channels": 1, "n_ssm": theirs["d_model"], "dt_transform": "exp", "real_transform": "exp"}
    _fields.wanted(source, theirs, bidirectional=False, gate=False, **usual)


def module(theirs: dict) -> S4D:
    plain("s4/s4d", theirs)
    rule = theirs.get("disc", "zoh")
    return S4D(width=theirs["d_model"], state_size=theirs["d_state"], discretisation=rule)


def describe(model: nn.Module) -> dict | None:
    if not isinstance(model, S4D) or not model.input_map:
        return None
    fields = {"d_model": model.width, "d_state": model.state_size, "init": f"diag-{model.frequencies}", "l_max": None}
    return fields | {"disc": model.discretisation, "mode": "diag", "bidirectional": False, "transposed": False}


def kernel(width: int, modes: int) -> list[Entry]:
    """Entries that S4D and S4 share. Their matrix is -exp(A_real) - i A_imag."""
    ours, vector = (width, modes, 2), (1, width, modes, 2)
    return [
        reshaped("log_dt", "layer.kernel.inv_dt", (width,), (width, 1)),
        same("A_log", "layer.kernel.A_real"),
        Entry(("A_imag",), ("layer.kernel.A_imag",), lambda x: (-x,), lambda x: (-x,)),
        *(reshaped(name, f"layer.kernel.{name}", ours, vector) for name in ("B", "C")),
        reshaped("D", "layer.D", (width,), (1, width)),
        linear("out/kernel", "output_linear.0.weight", shape=(width, 2, width)),
        reshaped("out/bias", "output_linear.0.bias", (2, width), (2 * width,)),
    ]


def entries(theirs: dict) -> list[Entry]:
    return kernel(theirs["d_model"], theirs["d_state"] // 2)
