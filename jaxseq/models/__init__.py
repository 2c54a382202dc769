"""Whole networks, one file per kind.

`lm` is the causal language model of all architectures; the call signatures of the others are in their docstrings. Positions:
`lm` has rotary positions in attention, learned or sinusoidal ones added to the embedding, ALiBi, or none; `encoder` and
`sparse_encoder` learned or sinusoidal ones; `vit` a learned one per patch; `encoder_decoder` a learned bias for each bucket of
distances; `funnel` scores with sinusoids of distances.
"""

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq import registry


def build(config: ConfigDict) -> nn.Module:
    """The network of kind `config.model.kind`. Raises UserError for values from which it cannot be built."""
    return registry.load("models", config.model.kind).build(config)
