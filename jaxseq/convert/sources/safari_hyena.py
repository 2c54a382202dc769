"""Hyena operators of HazyResearch/safari: in_proj, short_filter, filter_fn.*, out_proj; single layers."""

import math
from collections.abc import Sequence

import numpy as np
from flax import linen as nn

from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, buffer, linear, reshaped, same
from jaxseq.errors import UserError
from jaxseq.mixers.hyena import Hyena

FIELDS = {"l_max": "l_max", "order": "order", "emb_dim": "features", "filter_order": "hidden", "w": "sine", "shift": "shift"}
FIELDS |= {"num_inner_mlps": "inner", "fast_decay_pct": "fast", "slow_decay_pct": "slow", "target": "target"}
DEFAULTS = {"order": 2, "emb_dim": 3, "filter_order": 64, "w": 1.0, "shift": 0.0, "num_inner_mlps": 2}
DEFAULTS |= {"fast_decay_pct": 0.3, "slow_decay_pct": 1.5, "target": 1e-2, "l_max": 1024}


def recognises(theirs: dict, names: set[str]) -> bool:
    return {"filter_fn.pos_emb.z", "short_filter.weight", "in_proj.weight"} <= names


def module(theirs: dict) -> Hyena:
    _fields.wanted("safari/hyena", theirs, num_heads=1, num_blocks=1, modulate=True)
    full = DEFAULTS | theirs
    return Hyena(width=theirs["d_model"], **{ours: full[name] for name, ours in FIELDS.items()})


def describe(model: nn.Module) -> dict | None:
    if not isinstance(model, Hyena) or model.convention != "safari" or model.heads != 1 or model.taps != 3:
        return None
    return {"d_model": model.width} | {name: getattr(model, ours) for name, ours in FIELDS.items()}


def linspace(first: float, last: float, count: int) -> np.ndarray:
    """torch.linspace in float32, bit for bit: from both ends to the middle, with fused multiply-add."""
    ends, n = np.float32([first, last]), np.arange(count, dtype=np.float64)
    step = np.float64((ends[1] - ends[0]) / np.float32(max(count - 1, 1)))
    return np.where(n < count // 2, ends[0] + step * n, ends[1] - step * (count - 1 - n)).astype(np.float32)


def taps(ours: str, theirs: str, layers: Sequence[int] | None = None) -> Entry:
    """A depthwise convolution's (channels, 1, taps), oldest first, as [taps, channels], newest first."""
    return Entry((ours,), (theirs,), lambda w: (w[:, 0, ::-1].T,), lambda w: (w.T[:, None, ::-1],), layers)


def _one(*copies):
    """The frequency of the sines, which layers share but store separately."""
    if any(not np.array_equal(copy, copies[0]) for copy in copies):
        raise UserError("the freq of filter_fn.implicit_filter differs between layers, but must be one parameter; check the file")
    return (copies[0][0],)


def entries(theirs: dict) -> list[Entry]:
    full = DEFAULTS | theirs
    width, order, inner, hidden = theirs["d_model"], full["order"], full["num_inner_mlps"], full["filter_order"]
    count, length, features = order - 1, full["l_max"], full["emb_dim"]
    mlp = "filter_fn.implicit_filter"
    sines = tuple(f"{mlp}.{2 * i + 1}.freq" for i in range(inner + 1))
    ends = (math.log(full["target"]) / full[f"{end}_decay_pct"] for end in ("slow", "fast"))
    table = [
        linear("in/kernel", "in_proj.weight", shape=(width, 1, order + 1, width)),
        reshaped("in/bias", "in_proj.bias", (1, order + 1, width), (-1,)),
        taps("conv_kernel", "short_filter.weight"),
        same("conv_bias", "short_filter.bias"),
        reshaped("skip", "filter_fn.bias", (count, width), (-1,)),
        reshaped("filter/position", "filter_fn.pos_emb.z", (length, features), (1, length, features)),
        buffer("filter_fn.pos_emb.t", linspace(0, 1, length)[None, :, None]),
        Entry(("filter/freq",), sines, _one, lambda freq: (freq[None],) * len(sines)),
        linear("filter/kernel_out", f"{mlp}.{2 * inner + 2}.weight", shape=(hidden, count, width)),
        buffer("filter_fn.modulation.deltas", linspace(*ends, count * width)[None, None]),
        linear("out/kernel", "out_proj.weight"),
        same("out/bias", "out_proj.bias"),
    ]
    for i in range(inner + 1):
        table += [linear(f"filter/kernel_{i}", f"{mlp}.{2 * i}.weight"), same(f"filter/bias_{i}", f"{mlp}.{2 * i}.bias")]
    return table
