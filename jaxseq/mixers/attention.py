"""Softmax attention with rotary positions, grouped queries and an optional sliding window (the Llama family's)."""

import jax.numpy as jnp
from flax import linen as nn

from jaxseq import forms
from jaxseq.errors import UserError
from jaxseq.layers import Linear, Mixer, fan_in, normal, rotate
from jaxseq.ops import attention


class Attention(Mixer):
    """y = softmax(q k^T / sqrt(K)) v W_O with q, k, v = rotate(x W_Q), rotate(x W_K), x W_V.

    Llama's convention of rotary pairs (i, i + K/2), theta^(-2i/K) (Touvron et al. 2023, arXiv:2302.13971, §2.2; Su et al.
    2021, arXiv:2104.09864). The output projection starts smaller by sqrt(2 layers), as in GPT-2 (Radford et al. 2019, §2.3).
    """

    heads: int = 4
    kv_heads: int | None = None  # default: heads
    head_size: int | None = None  # default: width / heads
    window: int | None = None  # tokens seen, the query's own included; default: all
    rotary: bool = True
    theta: float = 10000.0
    bias: bool = False  # on q, k, v and the output
    init_std: float | None = None  # default: 1 / sqrt(inputs)

    @nn.nowrap
    def _sizes(self) -> tuple[int, int]:
        kv_heads, size = self.kv_heads or self.heads, self.head_size or self.width // self.heads
        if self.heads % kv_heads:
            raise UserError(f"{self.heads} query heads cannot share {kv_heads} key/value heads; make kv_heads a divisor")
        if not self.head_size and self.width % self.heads:
            raise UserError(f"width {self.width} is not a multiple of {self.heads} heads; change one, or set head_size")
        if self.rotary and size % 2:
            raise UserError(f"rotary positions turn pairs, but a head has {size} channels; make width / heads even")
        return kv_heads, size

    @nn.nowrap
    def init_state(self, batch, context):
        kv_heads, size = self._sizes()
        if self.window is None and context is None:
            raise UserError("full attention keeps every token: say how many, init_state(batch, context=N)")
        return attention.init_state(batch, self.window or context, kv_heads, size, size, self.dtype)

    @nn.nowrap
    def room(self, state):
        return None if self.window else state.k_BSGK.shape[-3] - state.count_B

    @nn.compact
    def mix(self, x_BTD, state, pos_BT, form, layer, train):
        kv_heads, size = self._sizes()

        def project(heads, axis, name):
            init = None if self.init_std is None else normal(self.init_std)
            return Linear((heads, size), ("embed", axis, None), 1, self.bias, init, self.dtype, name=name)(x_BTD)

        q_BTHK = project(self.heads, "heads", "q")
        k_BTGK, v_BTGK = project(kv_heads, "kv_heads", "k"), project(kv_heads, "kv_heads", "v")
        if self.rotary:
            frequency_F = self.theta ** (-jnp.arange(0, size, 2) / size)
            q_BTHK, k_BTGK = rotate(q_BTHK, pos_BT, frequency_F), rotate(k_BTGK, pos_BT, frequency_F)
        op = forms.op("attention", form, x_BTD.shape[1])
        y_BTHK, state = op(q_BTHK, k_BTGK, v_BTGK, state=state, pos=pos_BT, window=self.window)
        shrink = (2 * self.layers) ** -0.5
        init = fan_in(shrink) if self.init_std is None else normal(self.init_std * shrink)
        out = Linear((self.width,), ("heads", None, "embed"), 2, self.bias, init, self.dtype, name="o")
        return out(y_BTHK), state


