"""Shared by all checkpoints of Mamba and Mamba-2: backbone.layers.N.{norm,mixer}; and by those of their hybrids."""

import math
from collections.abc import Sequence
from typing import Any

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import base
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, linear, norm, same
from jaxseq.convert.sources import _stacks

NAMES = "backbone.layers.{layer}"
STEPS = {"dt_min": "time_step_min", "dt_max": "time_step_max", "dt_floor": "time_step_floor"}  # {ours: transformers'


def mixer(model: nn.Module, kind: str) -> Any:
    """The mixer of a model whose only mixer is of class `kind`; else None."""
    found = _stacks.mixers(model, (kind,), norm="rmsnorm")
    return found and found[0][0]


def frame(source: str, label: str, theirs: dict, tied: bool, **values: Any) -> ConfigDict:
    """Our config for a config of transformers, without the mixer. values: required values of further fields."""
    _fields.wanted(source, theirs, use_bias=False, use_conv_bias=True, hidden_act="silu", **values)
    cfg = base()
    cfg.model.stack = f"{theirs['num_hidden_layers']}*({label})"
    cfg.model.width, cfg.model.vocab = theirs["hidden_size"], theirs["vocab_size"]
    cfg.model.norm_eps = theirs.get("layer_norm_epsilon", 1e-5)
    cfg.model.tied = theirs.get("tie_word_embeddings", tied)
    return cfg


def steps(theirs: dict) -> dict:
    """The fields of the mixer that transformers' config has."""
    return {ours: theirs[name] for ours, name in STEPS.items() if name in theirs}


def inner(size: int, width: int) -> dict:
    """The fields of mamba2 for an inner width, which need not be a multiple of the width."""
    return {"inner": size} if size % width else {"expand": size // width}


def hybrid_fields(source: str, theirs: dict) -> dict:
    """The fields of mamba2 in the configs of Granite 4.0-H and Falcon-H1; theirs: with all `mamba_…` fields."""
    _fields.wanted(source, theirs, mamba_conv_bias=True, mamba_proj_bias=False)
    width, heads = theirs["hidden_size"], theirs["mamba_n_heads"]
    size = theirs.get("mamba_d_ssm") or theirs["mamba_expand"] * width
    if theirs.get("mamba_d_head") != "auto":
        _fields.wanted(source, theirs, mamba_d_head=size // heads)
    low, high = theirs.get("time_step_limit") or (0.0, math.inf)
    return inner(size, width) | {
        "heads": heads, "groups": theirs["mamba_n_groups"], "state_size": theirs["mamba_d_state"], "taps": theirs["mamba_d_conv"],
        "eps": theirs["rms_norm_eps"], "dt_low": float(low), "dt_high": _fields.finite(high),
    }  # fmt: skip


def hybrid_described(mixer: Any) -> dict:
    """The fields of these configs for the mixer mamba2."""
    return {
        "mamba_n_heads": mixer.heads, "mamba_d_head": mixer.inner_size // mixer.heads, "mamba_n_groups": mixer.groups,
        "mamba_d_state": mixer.state_size, "mamba_d_conv": mixer.taps,
        "time_step_limit": [mixer.dt_low, math.inf if mixer.dt_high is None else mixer.dt_high],
    }  # fmt: skip


def described(model: nn.Module, mixer: Any) -> dict:
    """The fields that transformers' configs of Mamba and Mamba-2 share."""
    return {theirs: getattr(mixer, ours) for ours, theirs in STEPS.items()} | {
        "vocab_size": model.vocab,
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "state_size": mixer.state_size,
        "conv_kernel": mixer.taps,
        "expand": mixer.expand,
        "layer_norm_epsilon": model.norm_eps,
        "hidden_act": "silu",
        "use_bias": False,
        "use_conv_bias": True,
        "residual_in_fp32": True,
        "tie_word_embeddings": model.tied,
    }


def entries(label: str, layers: Sequence[int], embedding: str, tied: bool) -> list[Entry]:
    """The table of a model whose only mixer has this label, "mamba" or "mamba2"."""
    ours, names = f"blocks_0/{label}", f"{NAMES}.mixer"
    table = outer(embedding, tied) + norm(f"blocks_0/norm_{label}", f"{NAMES}.norm", layers, bias=False)
    return table + {"mamba": of_mamba, "mamba2": of_mamba2}[label](ours, names, layers)


def outer(embedding: str, tied: bool) -> list[Entry]:
    """Embedding, last norm and head."""
    table = [same("embedding", embedding), *norm("final_norm", "backbone.norm_f", bias=False)]
    return table + ([] if tied else [same("head", "lm_head.weight")])


def _of_both(ours: str, names: str, layers: Sequence[int]) -> list[Entry]:
    table = [linear(f"{ours}/{kind}/kernel", f"{names}.{kind}_proj.weight", layers) for kind in ("in", "out")]
    table += [same(f"{ours}/{name}", f"{names}.{name}", layers) for name in ("A_log", "D")]
    table.append(same(f"{ours}/conv_bias", f"{names}.conv1d.bias", layers))
    taps = (lambda w: (w[:, 0, ::-1].T,)), (lambda w: (w[::-1].T[:, None],))  # their taps begin with the oldest input
    return [*table, Entry((f"{ours}/conv_kernel",), (f"{names}.conv1d.weight",), *taps, layers)]


def of_mamba(ours: str, names: str, layers: Sequence[int]) -> list[Entry]:
    """The mixer at the path `ours`; names: the path of their module, with "{layer}"."""
    table = [linear(f"{ours}/{kind}/kernel", f"{names}.{kind}_proj.weight", layers) for kind in ("x", "dt")]
    return [*_of_both(ours, names, layers), *table, same(f"{ours}/dt_bias", f"{names}.dt_proj.bias", layers)]


def of_mamba2(ours: str, names: str, layers: Sequence[int], normed: bool = True) -> list[Entry]:
    """The mixer at the path `ours`; names: the path of their module, with "{layer}"; normed: whether its output has a norm."""
    pairs = {"dt_bias": "dt_bias"} | ({"norm_scale": "norm.weight"} if normed else {})
    table = [same(f"{ours}/{kind}", f"{names}.{name}", layers) for kind, name in pairs.items()]
    return _of_both(ours, names, layers) + table
