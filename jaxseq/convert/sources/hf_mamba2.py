"""Mamba-2: transformers' Mamba2ForCausalLM."""

import math

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry
from jaxseq.convert.sources import _mamba


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "mamba2"


def config(theirs: dict) -> ConfigDict:
    inner = theirs.get("expand", 2) * theirs["hidden_size"]
    size = inner // theirs["num_heads"]
    cfg = _mamba.frame("hf/mamba2", "mamba2", theirs, False, head_dim=size)
    low, high = theirs.get("time_step_limit") or (0.0, math.inf)
    cfg.model.mamba2 = _mamba.steps(theirs) | {
        "expand": theirs.get("expand", 2), "heads": theirs["num_heads"], "groups": theirs.get("n_groups", 8),
        "state_size": theirs.get("state_size", 128), "taps": theirs.get("conv_kernel", 4), "eps": cfg.model.norm_eps,
        "dt_low": float(low), "dt_high": _fields.finite(high),
    }  # fmt: skip
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    mixer = _mamba.mixer(model, "Mamba2")
    if mixer is None or mixer.inner or mixer.eps != model.norm_eps:
        return None
    return _mamba.described(model, mixer) | {
        "architectures": ["Mamba2ForCausalLM"],
        "model_type": "mamba2",
        "num_heads": mixer.heads,
        "head_dim": mixer.expand * model.width // mixer.heads,
        "n_groups": mixer.groups,
        "time_step_limit": [mixer.dt_low, math.inf if mixer.dt_high is None else mixer.dt_high],
    }


def aliases(theirs: dict) -> dict:
    return {"lm_head.weight": "backbone.embeddings.weight"} if theirs.get("tie_word_embeddings") else {}


def entries(theirs: dict) -> list[Entry]:
    layers, tied = range(theirs["num_hidden_layers"]), theirs.get("tie_word_embeddings", False)
    return _mamba.entries("mamba2", layers, "backbone.embeddings.weight", tied)
