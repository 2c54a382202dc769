"""The feed-forward of the original Transformer with GELU (Vaswani et al. 2017, eq. 2; Hendrycks & Gimpel, arXiv:1606.08415)."""

from flax import linen as nn

from jaxseq.layers import Linear, Mixer, fan_in, normal


class MLP(Mixer):
    """y = gelu(x W_up + b) W_down + b; a mixer of channels, its state is ()."""

    hidden: int | None = None  # default: factor * width
    factor: int = 4
    bias: bool = True
    approximate: bool = True  # the tanh approximation of GELU, as in GPT-2; False: the exact one
    init_std: float | None = None  # default: 1 / sqrt(inputs)

    @nn.compact
    def mix(self, x_BTD, state, pos_BT, form, layer, train):
        hidden = self.hidden or self.factor * self.width
        init = None if self.init_std is None else normal(self.init_std)
        h_BTF = Linear((hidden,), ("embed", "mlp"), 1, self.bias, init, self.dtype, name="up")(x_BTD)
        h_BTF = nn.gelu(h_BTF, approximate=self.approximate)
        shrink = (2 * self.layers) ** -0.5
        init = fan_in(shrink) if self.init_std is None else normal(self.init_std * shrink)
        return Linear((self.width,), ("mlp", "embed"), 1, self.bias, init, self.dtype, name="down")(h_BTF), ()
