"""minGRU: one gate that depends on the input only (Feng et al. 2024, arXiv:2410.01201, §3.1.3)."""

import jax

from jaxseq.mixers._minrnn import MinRNN


class MinGRU(MinRNN):
    """h_t = (1 - z) h_{t-1} + z v_t, z = sigmoid(x W_z - b); the gate is the logit of 1 - z, b - x W_z."""

    def gate(self, u_BTD: jax.Array) -> jax.Array:
        b_D = self.bias("forget_bias", self.forget_bias)
        return b_D - self.linear(u_BTD, "z").astype(b_D.dtype)
