"""The feed-forward of the original Transformer (Vaswani et al. 2017, eq. 2), by default with GELU."""

from typing import Any

import jax
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.layers import Linear, Mixer, Units, recomputed
from jaxseq.mixers import _activations, _init


class MLP(Mixer):
    """y = act(x W_up + b) W_down + b; a feed-forward without state (its state is ()).

    Activations: relu (Vaswani et al.), gelu (exact) and gelu_tanh, its approximation in GPT-2 (Hendrycks & Gimpel 2016,
    arXiv:1606.08415, §2), silu, relu2 (So et al. 2021, arXiv:2109.08668, §3).
    """

    hidden: int | None = None  # default: factor * width
    factor: int = 4
    bias: bool = True
    activation: str = "gelu_tanh"
    initial: str = "gpt2"  # initial values, see _init.RECIPES
    init_std: float | None = None  # for gpt2 and llama; default: 1 / sqrt(inputs)
    output_std: float | None = None  # of the output projection; default: set by `initial`

    @property
    def features(self) -> int:
        """F, the hidden size."""
        return self.hidden or self.factor * self.width

    @nn.nowrap
    def units(self, kind: str) -> Units | str:
        return Units(self.features, ("mlp",), lambda n: {"hidden": n}) if kind == "channels" else super().units(kind)

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        activation, init = _activations.find(self.activation), _init.inward(self)
        bias_init = _init.bias(self, self.width)
        h_BTF = Linear((self.features,), ("embed", "mlp"), 1, self.bias, init, self.dtype, bias_init, name="up")(x_BTD)
        init, bias_init = _init.outward(self), _init.bias(self, self.features)
        out = Linear((self.width,), ("mlp", "embed"), 1, self.bias, init, self.dtype, bias_init, name="down")
        return Mixed(out(recomputed(activation)(h_BTF)), ())
