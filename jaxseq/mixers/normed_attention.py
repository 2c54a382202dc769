"""Attention with normalised queries and keys (Henry et al. 2020, arXiv:2010.04245) and an optional output gate."""

import jax
from flax import linen as nn

from jaxseq import forms
from jaxseq.layers import Linear, RMSNorm, rotate
from jaxseq.mixers import _init
from jaxseq.mixers.attention import Attention


class NormedAttention(Attention):
    """y = (softmax(q k^T / sqrt(K)) v * sigmoid(x W_G)) W_O with q, k = rotate(rms_norm(x W)), the norm over each head.

    All heads share the scales of the norms. `gated` adds the gate W_G on the output of the heads (Qiu et al. 2025,
    arXiv:2505.06708); without it this is the attention of Qwen3 and LFM2. Fields as in `attention`, without alibi.
    """

    gated: bool = False
    eps: float = 1e-6  # of the norms
    initial: str = "llama"

    @nn.compact
    def mix(self, x_BTD, state, pos_BT, form, layer, train):
        kv_heads, size = self._sizes()
        init, bias_init = _init.inward(self), _init.bias(self, self.width)

        def project(heads, axis, name):
            axes = "embed", axis, None
            return Linear((heads, size), axes, 1, self.bias, init, self.dtype, bias_init, name=name)(x_BTD)

        q_BTHK = RMSNorm(self.eps, self.dtype, name="q_norm")(project(self.heads, "heads", "q"))
        k_BTGK = RMSNorm(self.eps, self.dtype, name="k_norm")(project(kv_heads, "kv_heads", "k"))
        if self.rotary:
            frequency_F = self._frequencies(size)
            q_BTHK, k_BTGK = (rotate(x, pos_BT, frequency_F, self.interleaved) for x in (q_BTHK, k_BTGK))
        op, v_BTGV = forms.op("attention", form, x_BTD.shape[1]), project(kv_heads, "kv_heads", "v")
        y_BTHK, state = op(q_BTHK, k_BTGK, v_BTGV, state=state, pos=pos_BT, window=self.window, scale=size**-0.5)
        if self.gated:
            y_BTHK *= jax.nn.sigmoid(project(self.heads, "heads", "g"))
        bias = self.bias if self.output_bias is None else self.output_bias
        init, bias_init = _init.outward(self), _init.bias(self, self.heads * size)
        out = Linear((self.width,), ("heads", None, "embed"), 2, bias, init, self.dtype, bias_init, name="o")
        return out(y_BTHK), state
