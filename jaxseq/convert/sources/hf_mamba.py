"""Mamba: transformers' MambaForCausalLM."""

from typing import Any

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import finish
from jaxseq.convert._table import Entry
from jaxseq.convert.sources import _mamba


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "mamba"


def fields(theirs: dict) -> dict:
    """The fields of the mixer, also for Falcon Mamba."""
    width, rank = theirs["hidden_size"], theirs.get("time_step_rank", "auto")
    return _mamba.steps(theirs) | {
        "expand": theirs.get("expand", 2), "state_size": theirs.get("state_size", 16), "taps": theirs.get("conv_kernel", 4),
        "dt_rank": -(-width // 16) if rank == "auto" else rank,
    }  # fmt: skip


def config(theirs: dict, source: str = "hf/mamba", **more: Any) -> ConfigDict:
    inner = theirs.get("expand", 2) * theirs["hidden_size"]
    cfg = _mamba.frame(source, "mamba", theirs, True, intermediate_size=inner)
    cfg.model.mamba = fields(theirs) | more
    return finish(cfg)


def describe(
    model: nn.Module, selected_norm: str = "none", name: str = "mamba", architecture: str = "MambaForCausalLM"
) -> dict | None:
    mixer = _mamba.mixer(model, "Mamba")
    if mixer is None or mixer.selected_norm != selected_norm:
        return None
    return _mamba.described(model, mixer) | {
        "architectures": [architecture],
        "model_type": name,
        "intermediate_size": mixer.expand * model.width,
        "time_step_rank": mixer.dt_rank or -(-model.width // 16),
    }


def aliases(theirs: dict) -> dict:
    return {"lm_head.weight": "backbone.embeddings.weight"} if theirs.get("tie_word_embeddings", True) else {}


def entries(theirs: dict) -> list[Entry]:
    layers, tied = range(theirs["num_hidden_layers"]), theirs.get("tie_word_embeddings", True)
    return _mamba.entries("mamba", layers, "backbone.embeddings.weight", tied)
