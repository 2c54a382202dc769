"""Simple recurrent unit (Lei et al. 2018, arXiv:1709.02755, §3; see `jaxseq.ops.sru`)."""

import math
from typing import Any

import jax
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.layers import Linear, Mixer, param, uniform
from jaxseq.ops import sru


class SRU(Mixer):
    """y = r c + (1 - r) alpha x: the highway connection of the paper, alpha = sqrt(1 + 2 e^b), inside the residual block.

    Candidate and gates are affine in the input. Initial values: kernels uniform with variance 1 / width (§3.2); v_f and v_r
    uniform with variance 1 / 2, as in the released code; the bias of the highway gate b = `highway_bias`.
    """

    highway_bias: float = -2.0

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> sru.SRUState:
        return sru.init_state(batch, self.width, self.dtype)

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        init = uniform((3 / self.width) ** 0.5)

        def linear(name):
            return Linear((self.width,), ("embed", "mlp"), init_fn=init, dtype=self.dtype, name=name)(x_BTD)

        def vector(name, init):
            return param(self, name, init, (self.width,), ("mlp",), decay=False)

        constant = jax.nn.initializers.constant
        b_f_D, b_r_D = vector("f_bias", constant(0.0)), vector("r_bias", constant(self.highway_bias))
        alpha = math.sqrt(1 + 2 * math.exp(self.highway_bias))
        y_BTD, state = call.op("sru")(
            linear("u"), (linear("f") + b_f_D).astype(self.dtype), (linear("r") + b_r_D).astype(self.dtype), alpha * x_BTD,
            v_f_D=vector("v_f", uniform(1.5**0.5)), v_r_D=vector("v_r", uniform(1.5**0.5)), state=state,
        )  # fmt: skip
        return Mixed(y_BTD, state)
