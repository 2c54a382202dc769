"""S4 layers of state-spaces/s4 (S4Block with mode "dplr", rank 1): layer.*, output_linear.*; single layers.

After its first use such a layer stores C for a filter of `l_kernel` taps, and that number in the tensor layer.kernel.l_kernel.
Give it as "l_kernel" in the config; without it C is read as that of a layer before its first use.
"""

import numpy as np
from flax import linen as nn

from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, buffer, reshaped
from jaxseq.convert.sources.s4_s4d import kernel, plain
from jaxseq.mixers.s4 import S4


def recognises(theirs: dict, names: set[str]) -> bool:
    return {"layer.kernel.C", "layer.kernel.P", "output_linear.0.weight"} <= names


def module(theirs: dict) -> S4:
    plain("s4/s4", theirs)
    _fields.wanted("s4/s4", theirs, rank=1)
    return S4(width=theirs["d_model"], state_size=theirs["d_state"], kernel_length=theirs.get("l_kernel") or None)


def describe(model: nn.Module) -> dict | None:
    if not isinstance(model, S4):
        return None
    fields = {"d_model": model.width, "d_state": model.state_size, "l_kernel": model.kernel_length or 0}
    return fields | {"mode": "dplr", "init": "legs", "l_max": None, "bidirectional": False, "transposed": False}


def entries(theirs: dict) -> list[Entry]:
    width, modes = theirs["d_model"], theirs["d_state"] // 2
    low_rank = reshaped("P", "layer.kernel.P", (width, modes, 2), (1, width, modes, 2))
    length = buffer("layer.kernel.l_kernel", np.int64(theirs.get("l_kernel") or 0))
    return [*kernel(width, modes), low_rank, length]
