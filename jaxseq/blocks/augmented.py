"""Augmented shortcuts: parallel nonlinear paths past the attention (Wang et al. 2023, PanGu-pi, arXiv:2312.17276, §4.2)."""

from typing import Any

import jax
from flax import linen as nn

from jaxseq.blocks._block import Block
from jaxseq.call import Call, Mixed
from jaxseq.layers import Linear, constrain, fan_in
from jaxseq.mixers import _init


class Augmented(Block):
    """x <- x + mixer(h) + sum_i T_i(h), h = norm(x), T_i(h) = gelu(h W_down) W_up of rank D / reduction, i = 1 … shortcuts.

    The paper defines AugMSA(Z) = MSA(Z) + Z + sum_i T_i(Z) without norms. In this pre-norm block attention and shortcuts take the
    normed stream h, and the residual Z stays unnormed, as in the authors' vision model (Tang et al. 2021, arXiv:2106.15941). Only
    mixers with a state have shortcuts; feed-forwards have none. The paper does not specify activation, biases and initial values:
    here the GELU is exact, there are no biases, and W_up is initialised like every map back to the residual stream.
    """

    shortcuts: int = 1
    reduction: int = 32

    @nn.compact
    def __call__(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        after, streams = [], {}
        for mixer, before in zip(self.mixers, state or (None,) * len(self.mixers), strict=True):
            h_BTD = self.normed(x_BTD, mixer.name)
            y_BTD, s, written = self.run(mixer, h_BTD, before, call)
            streams |= written
            x_BTD = x_BTD + y_BTD.astype(x_BTD.dtype)
            if mixer.init_state(1, 1) != ():
                for i in range(self.shortcuts):
                    x_BTD += self._shortcut(h_BTD, f"shortcut_{mixer.name}_{i}", _init.additions(mixer)).astype(x_BTD.dtype)
            x_BTD = constrain(x_BTD, ("batch", "time", None))
            after.append(s)
        return Mixed(x_BTD, tuple(after), streams)

    @nn.nowrap
    def _shortcut(self, h_BTD: jax.Array, name: str, additions: int) -> jax.Array:
        width = h_BTD.shape[-1]
        rank, shrink = max(1, width // self.reduction), fan_in(additions**-0.5)
        h_BTR = Linear((rank,), ("embed", "mlp"), dtype=self.dtype, name=f"{name}_down")(h_BTD)
        up = Linear((width,), ("mlp", "embed"), init_fn=shrink, dtype=self.dtype, name=f"{name}_up")
        return up(jax.nn.gelu(h_BTR, approximate=False))
