"""The gated feed-forward with GELU (Shazeer 2020, arXiv:2002.05202, eq. 5 and 6), as in Gemma and Griffin."""

from typing import Any

import jax
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.layers import Linear, Mixer, Units
from jaxseq.mixers import _activations, _init


class GeGLU(Mixer):
    """y = (gelu(x W_gate) * x W_up) W_down; a feed-forward without state (its state is ())."""

    hidden: int | None = None  # default: factor * width
    factor: int = 3  # Griffin's (De et al. 2024, arXiv:2402.19427, §2.2)
    bias: bool = False
    activation: str = "gelu_tanh"
    initial: str = "gpt2"  # initial values, see _init.RECIPES
    init_std: float | None = None  # for gpt2 and llama; default: 1 / sqrt(inputs)

    @property
    def features(self) -> int:
        """F, the hidden size."""
        return self.hidden or self.factor * self.width

    @nn.nowrap
    def units(self, kind: str) -> Units | str:
        return Units(self.features, ("mlp",), lambda n: {"hidden": n}) if kind == "channels" else super().units(kind)

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        hidden, init = self.features, _init.paired(self)

        def up(name):
            bias_init = _init.bias(self, self.width)
            return Linear((hidden,), ("embed", "mlp"), 1, self.bias, init, self.dtype, bias_init, name=name)(x_BTD)

        y_BTF = _activations.gated(_activations.find(self.activation), up("gate"), up("up"))
        init, bias_init = _init.outward(self), _init.bias(self, hidden)
        out = Linear((self.width,), ("mlp", "embed"), 1, self.bias, init, self.dtype, bias_init, name="down")
        return Mixed(out(y_BTF), ())
