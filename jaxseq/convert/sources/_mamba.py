"""Shared by all checkpoints of Mamba and Mamba-2: backbone.layers.N.{norm,mixer}."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from jaxseq.config import base
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, linear, norm, same
from jaxseq.convert.sources import _stacks

NAMES = "backbone.layers.{layer}"
STEPS = {"dt_min": "time_step_min", "dt_max": "time_step_max", "dt_floor": "time_step_floor"}  # {ours: transformers'


def mixer(model, kind: str):
    """The mixer of a model whose only mixer is of class `kind`; else None."""
    found = _stacks.mixers(model, (kind,), norm="rmsnorm")
    return found and found[0][0]


def frame(source: str, label: str, theirs: dict, tied: bool, **values) -> ConfigDict:
    """Our config of transformers' config, without the mixer. values: required values of further fields."""
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


def described(model, mixer) -> dict:
    """The fields that transformers' configs of both have."""
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
    """The table without the tensors of the mixers."""
    table = [same("embedding", embedding), *norm("final_norm", "backbone.norm_f", bias=False)]
    table += [] if tied else [same("head", "lm_head.weight")]
    ours, names = f"blocks_0/{label}", f"{NAMES}.mixer"
    table += norm(f"blocks_0/norm_{label}", f"{NAMES}.norm", layers, bias=False)
    table += [linear(f"{ours}/{kind}/kernel", f"{names}.{kind}_proj.weight", layers) for kind in ("in", "out")]
    table += [same(f"{ours}/{name}", f"{names}.{name}", layers) for name in ("A_log", "D")]
    table.append(same(f"{ours}/conv_bias", f"{names}.conv1d.bias", layers))
    taps = (lambda w: (w[:, 0, ::-1].T,)), (lambda w: (w[::-1].T[:, None],))  # their taps begin with the oldest input
    return [*table, Entry((f"{ours}/conv_kernel",), (f"{names}.conv1d.weight",), *taps, layers)]


def of_mamba(layers: Sequence[int]) -> list[Entry]:
    ours, names = "blocks_0/mamba", f"{NAMES}.mixer"
    table = [linear(f"{ours}/{kind}/kernel", f"{names}.{kind}_proj.weight", layers) for kind in ("x", "dt")]
    return [*table, same(f"{ours}/dt_bias", f"{names}.dt_proj.bias", layers)]


def of_mamba2(layers: Sequence[int]) -> list[Entry]:
    ours, names = "blocks_0/mamba2", f"{NAMES}.mixer"
    return [same(f"{ours}/{kind}", f"{names}.{name}", layers) for kind, name in (("dt_bias",) * 2, ("norm_scale", "norm.weight"))]
