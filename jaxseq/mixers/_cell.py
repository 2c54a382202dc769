"""Base of the LSTM and GRU mixers: sizes, input projection, recurrent matrices and output projection."""

from typing import ClassVar

import jax
from flax import linen as nn

from jaxseq.errors import UserError
from jaxseq.layers import Initializer, Linear, Mixer, fan_in, normal, param
from jaxseq.mixers import _init


class Cell(Mixer):
    """y = h W_out, h the states of a recurrent cell with `heads` recurrent matrices of hidden / heads channels each.

    Initial values are normal with standard deviation 1 / sqrt(width) for input kernels and 1 / sqrt(hidden / heads) for recurrent
    ones. W_out (the projection of Sak et al. 2014, arXiv:1402.1128, here outside the recurrence) is further divided by the square
    root of the number of residual additions. More heads make the parallel forms cheaper, as they multiply matrices of the size
    of a head.
    """

    hidden_role: ClassVar[str] = "recurrence"

    heads: int = 1
    hidden: int | None = None  # default: width

    @property
    def features(self) -> int:
        """F, the hidden size."""
        return self.hidden or self.width

    @nn.nowrap
    def _size(self) -> int:
        hidden = self.features
        if hidden % self.heads:
            raise UserError(f"hidden size {hidden} is not a multiple of {self.heads} heads; change one of them")
        return hidden // self.heads

    def inputs(self, x_BTD: jax.Array, gates: int, bias: bool) -> jax.Array:
        """u = x W_x (+ b) [B, T, H, gates, K]."""
        features, axes = (self.heads, gates, self._size()), ("embed", "heads", None, None)
        return Linear(features, axes, bias=bias, dtype=self.dtype, name="in")(x_BTD)

    def recurrent_weights(self, gates: int, bias_init: Initializer) -> tuple[jax.Array, jax.Array]:
        size = self._size()
        shape, axes = (self.heads, size, gates, size), ("heads", None, None, None)
        w_HKPJ = param(self, "recurrent", normal(size**-0.5), shape, axes)
        return w_HKPJ, param(self, "bias", bias_init, (self.heads, gates, size), axes[1:], decay=False)

    def output(self, h_BTHK: jax.Array) -> jax.Array:
        axes, init = ("heads", None, "embed"), fan_in(_init.additions(self) ** -0.5)
        return Linear((self.width,), axes, 2, init_fn=init, dtype=self.dtype, name="o")(h_BTHK)
