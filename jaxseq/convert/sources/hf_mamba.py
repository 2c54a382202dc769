"""Mamba: transformers' MambaForCausalLM."""

from ml_collections import ConfigDict

from jaxseq.config import base, finish
from jaxseq.convert._table import Entry
from jaxseq.convert.sources import _mamba


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "mamba"


def fields(theirs: dict) -> dict:
    """Of the mixer; also Falcon Mamba's."""
    width, rank = theirs["hidden_size"], theirs.get("time_step_rank", "auto")
    steps = {ours: theirs[name] for ours, name in _mamba.STEPS.items() if name in theirs}
    return steps | {
        "expand": theirs.get("expand", 2), "state_size": theirs.get("state_size", 16), "taps": theirs.get("conv_kernel", 4),
        "dt_rank": -(-width // 16) if rank == "auto" else rank,
    }  # fmt: skip


def config(theirs: dict, source: str = "hf/mamba", **more) -> ConfigDict:
    width = theirs["hidden_size"]
    inner = theirs.get("expand", 2) * width
    _mamba.wanted(source, theirs, use_bias=False, use_conv_bias=True, hidden_act="silu", intermediate_size=inner)
    cfg = base()
    cfg.model.stack = f"{theirs['num_hidden_layers']}*(mamba)"
    cfg.model.width, cfg.model.vocab = width, theirs["vocab_size"]
    cfg.model.norm_eps = theirs.get("layer_norm_epsilon", 1e-5)
    cfg.model.tied = theirs.get("tie_word_embeddings", True)
    cfg.model.mamba = fields(theirs) | more
    return finish(cfg)


def describe(model, selected_norm: str = "none", name: str = "mamba", architecture: str = "MambaForCausalLM") -> dict | None:
    mixer = _mamba.mixer(model, "Mamba")
    if mixer is None or mixer.selected_norm != selected_norm:
        return None
    return {theirs: getattr(mixer, ours) for ours, theirs in _mamba.STEPS.items()} | {
        "architectures": [architecture],
        "model_type": name,
        "vocab_size": model.vocab,
        "hidden_size": model.width,
        "intermediate_size": mixer.expand * model.width,
        "num_hidden_layers": model.layers,
        "state_size": mixer.state_size,
        "conv_kernel": mixer.taps,
        "expand": mixer.expand,
        "time_step_rank": mixer.dt_rank or -(-model.width // 16),
        "layer_norm_epsilon": model.norm_eps,
        "hidden_act": "silu",
        "use_bias": False,
        "use_conv_bias": True,
        "residual_in_fp32": True,
        "tie_word_embeddings": model.tied,
    }


def aliases(theirs: dict) -> dict:
    return {"lm_head.weight": "backbone.embeddings.weight"} if theirs.get("tie_word_embeddings", True) else {}


def entries(theirs: dict) -> list[Entry]:
    layers, tied = range(theirs["num_hidden_layers"]), theirs.get("tie_word_embeddings", True)
    return _mamba.entries("mamba", layers, "backbone.embeddings.weight", tied) + _mamba.of_mamba(layers)
