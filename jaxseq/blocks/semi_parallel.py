"""Mixers with a state in parallel on one norm, then the feed-forward: SA_M of Falcon-H1 (Zuo et al. 2025, arXiv:2507.22448)."""

from typing import Any

import jax
from flax import linen as nn

from jaxseq.blocks._block import Block
from jaxseq.call import Call, Mixed
from jaxseq.layers import constrain


class SemiParallel(Block):
    """x <- x + sum_i mixer_i(norm(x)) for adjacent mixers with a state; x <- x + mixer(norm(x)) for each mixer without one.

    The norm of parallel mixers is named after the first of them.
    """

    @nn.compact
    def __call__(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        after, streams, h_BTD = [], {}, None
        for mixer, before in zip(self.mixers, state or (None,) * len(self.mixers), strict=True):
            alone = mixer.init_state(1, 1) == ()
            if alone or h_BTD is None:
                h_BTD = self.normed(x_BTD, mixer.name)
            y_BTD, s, written = self.run(mixer, h_BTD, before, call)
            streams |= written
            x_BTD = constrain(x_BTD + y_BTD.astype(x_BTD.dtype), ("batch", "time", None))
            after.append(s)
            if alone:  # the next mixer reads the new x
                h_BTD = None
        return Mixed(x_BTD, tuple(after), streams)
