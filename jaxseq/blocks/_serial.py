"""Base of the blocks whose mixers come one after another, each with a residual connection."""

from typing import Any

import jax
from flax import linen as nn

from jaxseq.blocks._block import Block
from jaxseq.call import Call, Mixed
from jaxseq.layers import constrain


class Serial(Block):
    """For each mixer: h = before(x), y = mixer(h), x <- after(x, h, y). A subclass defines `before` and `after`."""

    def before(self, x_BTD: jax.Array, name: str) -> jax.Array:
        """The mixer's input; `name` is the mixer's."""
        raise NotImplementedError

    def after(self, x_BTD: jax.Array, h_BTD: jax.Array, y_BTD: jax.Array, name: str) -> jax.Array:
        """The residual stream after the mixer, whose output y has the dtype of x."""
        raise NotImplementedError

    @nn.compact
    def __call__(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        states, streams = [], {}
        for mixer, old in zip(self.mixers, state or (None,) * len(self.mixers), strict=True):
            h_BTD = self.before(x_BTD, mixer.name).astype(self.dtype)
            y_BTD, new, written = self.run(mixer, h_BTD, old, call)
            streams |= written
            next_BTD = self.after(x_BTD, h_BTD, y_BTD.astype(x_BTD.dtype), mixer.name)
            x_BTD = constrain(next_BTD.astype(x_BTD.dtype), ("batch", "time", None))
            states.append(new)
        return Mixed(x_BTD, tuple(states), streams)
