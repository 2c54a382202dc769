"""The gated feed-forward with a series of activations (Wang et al. 2023, PanGu-pi, arXiv:2312.17276, §4.1)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxseq.call import Call, Mixed
from jaxseq.layers import Linear, Mixer, param
from jaxseq.mixers import _init


def spread_init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """Equally spaced values from -1 to 1 over the terms; 0 for a single term."""
    terms = shape[0]
    step = jnp.linspace(-1, 1, terms, dtype=dtype) if terms > 1 else jnp.zeros((1,), dtype)
    return jnp.broadcast_to(step[:, None], shape)


class SeriesSwiGLU(Mixer):
    """y = (sum_i silu(a_i * (x W_gate) + b_i) * x W_up) W_down, i = 1 … terms; a feed-forward without state (its state is ()).

    Each hidden channel of the gate has its own scales a and shifts b. All terms use the same token; the series activation of
    VanillaNet sums over neighbouring positions, which is not causal. One term with a = 1 and b = 0 is SwiGLU.

    The paper does not give initial values of a and b. Equal terms would stay equal, so here a = 1 and b is spread over [-1, 1].
    W_down is divided by the number of terms, because the hidden activation is their sum.
    """

    terms: int = 2
    hidden: int | None = None  # default: 8/3 width, rounded up to a multiple of 8
    initial: str = "gpt2"  # initial values, see _init.RECIPES
    init_std: float | None = None  # for gpt2 and llama; default: 1 / sqrt(inputs)

    @property
    def features(self) -> int:
        """F, the hidden size."""
        return self.hidden or _init.gated_hidden(self.width)

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        init, shape = _init.paired(self), (self.terms, self.features)

        def up(name):
            return Linear((self.features,), ("embed", "mlp"), init_fn=init, dtype=self.dtype, name=name)(x_BTD)

        a_PF = param(self, "scale", jax.nn.initializers.ones, shape, (None, "mlp"), decay=False).astype(self.dtype)
        b_PF = param(self, "shift", spread_init, shape, (None, "mlp"), decay=False).astype(self.dtype)
        gate_BTF = up("gate")
        series_BTF = sum(nn.silu(a_PF[i] * gate_BTF + b_PF[i]) for i in range(self.terms))
        outward = _init.outward(self)
        shrunk = lambda key, shape, dtype: outward(key, shape, dtype) / self.terms  # noqa: E731
        y_BTF = series_BTF * up("up")
        return Mixed(Linear((self.width,), ("mlp", "embed"), init_fn=shrunk, dtype=self.dtype, name="down")(y_BTF), ())
