"""Falcon Mamba: transformers' FalconMambaForCausalLM."""

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.convert._table import Entry
from jaxseq.convert.sources import _mamba, hf_mamba

NAME = "falcon_mamba"


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == NAME


def config(theirs: dict) -> ConfigDict:
    eps = theirs.get("mixer_rms_eps", 1e-6)
    return hf_mamba.config(theirs, "hf/falcon_mamba", selected_norm="plain", selected_eps=eps)


def describe(model: nn.Module) -> dict | None:
    theirs = hf_mamba.describe(model, "plain", NAME, "FalconMambaForCausalLM")
    return theirs and theirs | {"mixer_rms_eps": _mamba.mixer(model, "Mamba").selected_eps}


def aliases(theirs: dict) -> dict:
    return hf_mamba.aliases(theirs)


def entries(theirs: dict) -> list[Entry]:
    return hf_mamba.entries(theirs)
