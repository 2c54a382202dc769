"""The gated feed-forward of the Llama family (Shazeer 2020, arXiv:2002.05202, eq. 6)."""

from typing import Any

import jax
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.layers import Linear, Mixer, Units
from jaxseq.mixers import _init
from jaxseq.mixers._activations import gated


class SwiGLU(Mixer):
    """y = (silu(x W_gate) * x W_up) W_down, without biases; a feed-forward without state (its state is ())."""

    hidden: int | None = None  # default: 8/3 width, rounded up to a multiple of 8
    initial: str = "gpt2"  # initial values, see _init.RECIPES
    init_std: float | None = None  # for gpt2 and llama; default: 1 / sqrt(inputs)

    @property
    def features(self) -> int:
        """F, the hidden size."""
        return self.hidden or _init.gated_hidden(self.width)

    @nn.nowrap
    def units(self, kind: str) -> Units | str:
        return Units(self.features, ("mlp",), lambda n: {"hidden": n}) if kind == "channels" else super().units(kind)

    @nn.nowrap
    def _activation(self, gate_BTF):
        return nn.silu(gate_BTF)

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        init = _init.paired(self)

        def up(name):
            return Linear((self.features,), ("embed", "mlp"), init_fn=init, dtype=self.dtype, name=name)(x_BTD)

        y_BTF = gated(self._activation, up("gate"), up("up"))
        init = _init.outward(self)
        y_BTD = Linear((self.width,), ("mlp", "embed"), init_fn=init, dtype=self.dtype, name="down")(y_BTF)
        return Mixed(y_BTD, ())
