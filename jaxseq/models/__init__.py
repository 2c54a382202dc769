"""Whole networks, one file a kind.

`lm` is the causal language model of every architecture; the others are called as their docstrings say. Where positions come
from: in `lm` rotary angles inside attention, learned or sinusoidal ones at the embedding, ALiBi, or none; in `encoder` learned
or sinusoidal ones; in `vit` a learned one a patch; in `encoder_decoder` a learned number for each bucket of distances.
"""

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq import registry


def build(config: ConfigDict) -> nn.Module:
    """The network of `config.model.kind`. Raises UserError for what the kind cannot be built from."""
    return registry.load("models", config.model.kind).build(config)
