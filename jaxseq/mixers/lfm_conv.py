"""The gated short convolution of LFM2 (Liquid AI 2025, "LFM2 Technical Report", arXiv:2511.23404, §2)."""

from typing import Any

import jax
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.layers import Linear, Mixer, fan_in, param
from jaxseq.mixers import _init
from jaxseq.ops import short_conv


class LFMConv(Mixer):
    """y = (c * conv(b * h)) W_out with (b, c, h) = x W_in; conv a depthwise causal convolution of a few taps."""

    taps: int = 3
    bias: bool = False
    initial: str = "llama"  # initial values, see _init.RECIPES
    init_std: float | None = None  # for gpt2 and llama; default: 1 / sqrt(inputs)

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> short_conv.ShortConvState:
        return short_conv.init_state(batch, self.taps, self.width, self.dtype)

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        init, zeros = _init.inward(self), nn.initializers.zeros
        inner = Linear((3, self.width), ("embed", None, "mlp"), 1, self.bias, init, self.dtype, name="in")(x_BTD)
        b_BTD, c_BTD, h_BTD = (inner[:, :, i] for i in range(3))
        w_WD = param(self, "conv_kernel", fan_in(), (self.taps, self.width), (None, "mlp"))
        bias_D = param(self, "conv_bias", zeros, (self.width,), ("mlp",), decay=False) if self.bias else None
        conv = call.op("short_conv")
        y_BTD, state = conv(b_BTD * h_BTD, w_WD=w_WD, bias_D=bias_D, state=state)
        out = Linear((self.width,), ("mlp", "embed"), 1, self.bias, _init.outward(self), self.dtype, name="out")
        return Mixed(out(c_BTD * y_BTD), state)
