"""Whole networks, one file a kind."""

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq import registry


def build(config: ConfigDict) -> nn.Module:
    """The network of `config.model.kind`. Raises UserError for what the kind cannot be built from."""
    return registry.load("models", config.model.kind).build(config)
