"""Attention and feed-forward in parallel on the residual stream (Wang & Komatsuzaki 2021, GPT-J; arXiv:2204.06745, §2.1)."""

from typing import Any

import jax
from flax import linen as nn

from jaxseq.blocks._block import Block
from jaxseq.call import Call, Mixed
from jaxseq.layers import constrain


class Parallel(Block):
    """x <- x + sum_i mixer_i(norm_i(x)): all mixers of a block have the same input. GPT-J shares one norm."""

    shared_norm: bool = False  # use the norm of the first mixer for all

    @nn.compact
    def __call__(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        after, streams, total_BTD, h_BTD = [], {}, x_BTD, None
        for mixer, before in zip(self.mixers, state or (None,) * len(self.mixers), strict=True):
            if h_BTD is None or not self.shared_norm:
                h_BTD = self.normed(x_BTD, mixer.name)
            y_BTD, s, written = self.run(mixer, h_BTD, before, call)
            streams |= written
            total_BTD += y_BTD.astype(x_BTD.dtype)
            after.append(s)
        return Mixed(constrain(total_BTD, ("batch", "time", None)), tuple(after), streams)
