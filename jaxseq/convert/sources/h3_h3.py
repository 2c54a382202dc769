"""H3 layers of HazyResearch/H3 (diagonal kernel): {q,k,v}_proj, ssm_k_kernel.*, kernel.*, output_linear; single layers."""

from flax import linen as nn

from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, linear, reshaped, same
from jaxseq.mixers.h3 import H3


def recognises(theirs: dict, names: set[str]) -> bool:
    return {"ssm_k_D", "q_proj.weight", "kernel.kernel.C"} <= names


def module(theirs: dict) -> H3:
    _fields.wanted("h3/h3", theirs, mode="diag")
    frequencies = theirs.get("measure", "diag-lin").removeprefix("diag-")
    return H3(
        width=theirs["d_model"], state_size=theirs.get("d_state", 64), head_size=theirs.get("head_dim", 1),
        frequencies=frequencies, discretisation=theirs.get("disc", "bilinear"),
    )  # fmt: skip


def describe(model: nn.Module) -> dict | None:
    if not isinstance(model, H3):
        return None
    fields = {"d_model": model.width, "d_state": model.state_size, "head_dim": model.head_size, "l_max": None}
    return fields | {"mode": "diag", "measure": f"diag-{model.frequencies}", "disc": model.discretisation}


def entries(theirs: dict) -> list[Entry]:
    width, size, state = theirs["d_model"], theirs.get("head_dim", 1), theirs.get("d_state", 64)
    heads = width // size
    table = [same("shift_B", "ssm_k_kernel.kernel.B"), same("shift_D", "ssm_k_D"), same("D", "D")]
    table.append(reshaped("shift_C", "ssm_k_kernel.kernel.C", (width, state), (1, width, state)))
    for name in "qkv":
        table.append(linear(f"{name}/kernel", f"{name}_proj.weight", shape=(width, heads, size)))
        table.append(reshaped(f"{name}/bias", f"{name}_proj.bias", (heads, size), (width,)))
    names = {"log_dt": "log_dt", "A_log": "inv_A_real", "A_imag": "A_imag", "B": "B"}
    table += [same(ours, f"kernel.kernel.{name}") for ours, name in names.items()]
    table.append(reshaped("C", "kernel.kernel.C", (heads, state // 2, 2), (1, heads, state // 2, 2)))
    forward = lambda w: (w.reshape(width, size, heads).transpose(2, 1, 0),)  # noqa: E731 (their outputs are ordered by channel)
    back = lambda w: (w.transpose(2, 1, 0).reshape(width, width),)  # noqa: E731
    return [*table, Entry(("o/kernel",), ("output_linear.weight",), forward, back), same("o/bias", "output_linear.bias")]
