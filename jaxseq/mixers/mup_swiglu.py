"""The gated feed-forward with the forward multipliers of Falcon-H1 (Zuo et al. 2025, arXiv:2507.22448), an extension of µP."""

from typing import Any

import jax
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.mixers.swiglu import SwiGLU


class MupSwiGLU(SwiGLU):
    """y = out (silu(gate (x W_gate)) * x W_up) W_down. Fields as in `swiglu`."""

    gate_multiplier: float = 1.0
    out_multiplier: float = 1.0

    @nn.nowrap
    def _activation(self, gate_BTF):
        return nn.silu(self.gate_multiplier * gate_BTF)

    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        mixed = super().mix(x_BTD, state, call)
        return mixed._replace(y_BTD=self.out_multiplier * mixed.y_BTD)
