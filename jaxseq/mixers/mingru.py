"""minGRU: one gate that looks at the input alone (Feng et al. 2024, arXiv:2410.01201, §3.1.3)."""

from jaxseq.mixers._minrnn import MinRNN


class MinGRU(MinRNN):
    """Keeps 1 - z of the state, z = sigmoid(x W_z - b): the logit of 1 - z is b - x W_z."""

    def gate(self, u_BTD):
        b_D = self.bias("forget_bias", self.forget_bias)
        return b_D - self.linear(u_BTD, "z").astype(b_D.dtype)
