"""Base of minLSTM and minGRU: convolution, values, recurrence and output (Feng et al. 2024, arXiv:2410.01201)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.layers import Linear, Mixer, fan_in, param, uniform
from jaxseq.mixers import _init
from jaxseq.ops import minlstm, short_conv


class MinState(NamedTuple):
    conv: short_conv.ShortConvState | tuple  # the last taps - 1 inputs of the convolution; () without one
    scan: minlstm.LinearState


def positive(x: jax.Array) -> jax.Array:
    """g of appendix B: x + 1/2 for x >= 0, else sigmoid(x); continuous, but its slope jumps from 1/4 to 1 at zero."""
    return jnp.where(x >= 0, x + 0.5, jax.nn.sigmoid(x))


class MinRNN(Mixer):
    """y = h W_out with h the recurrence of `jaxseq.ops.minlstm`; gate and values are linear in the convolved input.

    A subclass defines `gate`, the logit of the fraction of the state that is kept. Initial values: the gate's bias `forget_bias`
    (Jozefowicz et al. 2015, §5, for the LSTM); W_out divided by the square root of the number of residual additions.
    """

    expand: int = 1  # inner width = expand * width
    taps: int = 4  # of the convolution in front; 0: none
    positive: bool = True  # apply g to the values, as in the paper's log-space form; False: as in its §3
    forget_bias: float = 1.0

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> MinState:
        conv = short_conv.init_state(batch, self.taps, self.width, self.dtype) if self.taps else ()
        return MinState(conv, minlstm.init_state(batch, self.expand * self.width, self.dtype))

    def gate(self, u_BTD: jax.Array) -> jax.Array:
        raise NotImplementedError

    def linear(self, u_BTD: jax.Array, name: str) -> jax.Array:
        return Linear((self.expand * self.width,), ("embed", "mlp"), dtype=self.dtype, name=name)(u_BTD)

    def bias(self, name: str, value: float) -> jax.Array:
        shape, init = (self.expand * self.width,), jax.nn.initializers.constant(value)
        return param(self, name, init, shape, ("mlp",), decay=False)

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        conv_state, scan = (None, None) if state is None else state
        if self.taps:
            w_WD = param(self, "conv_kernel", uniform(self.taps**-0.5), (self.taps, self.width), (None, "embed"))
            bias_D = param(self, "conv_bias", jax.nn.initializers.zeros, (self.width,), ("embed",), decay=False)
            conv = call.op("short_conv")
            x_BTD, conv_state = conv(x_BTD, w_WD=w_WD, bias_D=bias_D, state=conv_state)
        else:
            conv_state = ()
        v_BTD = self.linear(x_BTD, "v")
        v_BTD = positive(v_BTD) if self.positive else v_BTD
        h_BTD, scan = call.op("minlstm")(v_BTD, self.gate(x_BTD), state=scan)
        init = fan_in(_init.additions(self) ** -0.5)
        out = Linear((self.width,), ("mlp", "embed"), init_fn=init, dtype=self.dtype, name="o")
        return Mixed(out(h_BTD), MinState(conv_state, scan))
