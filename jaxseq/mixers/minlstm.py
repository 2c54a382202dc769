"""minLSTM: forget and input gate, normalised to sum to one (Feng et al. 2024, arXiv:2410.01201, §3.2.3)."""

import jax
from jax.nn import log_sigmoid

from jaxseq.mixers._minrnn import MinRNN


class MinLSTM(MinRNN):
    """h_t = (f h_{t-1} + i v_t) / (f + i), f = sigmoid(x W_f + b), i = sigmoid(x W_i); the gate is log f - log i."""

    def gate(self, u_BTD: jax.Array) -> jax.Array:
        b_D = self.bias("forget_bias", self.forget_bias)
        f_BTD, i_BTD = (self.linear(u_BTD, name).astype(b_D.dtype) for name in "fi")
        return log_sigmoid(f_BTD + b_D) - log_sigmoid(i_BTD)
