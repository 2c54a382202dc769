"""Hyena: gated long convolutions with filters that are an MLP of the position (Poli et al. 2023, arXiv:2302.10866)."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call
from jaxseq.mixers import _hyena
from jaxseq.ops import long_conv


class Hyena(_hyena.GatedConvolutions):
    """Hyena with implicit filters of `l_max` taps; see `_hyena.GatedConvolutions` for the equations.

    The state holds the last l_max - 1 inputs of every long convolution, the smallest exact state. Filters are recomputed in
    every call, also for a single token; `jaxseq modal` converts a trained model to `hyena_modal`, with a small state and step.
    Do not change `l_max` of trained weights: positions are fractions of it, so another l_max gives another filter.
    """

    hidden_role: ClassVar[str] = "other"

    l_max: int = 256  # taps of a filter; at least the length of training rows
    features: int = 5  # position features: time, and pairs of cosine and sine
    hidden: int = 64  # width of the filter's MLP
    inner: int = 2  # its hidden layers after the first
    sine: float = 1.0  # first frequency of its sines; the paper has 14 for language and 10 for synthetic tasks (table A.3)
    fast: float = 0.3  # first and last channel decay to `target` after these fractions of l_max
    slow: float = 1.5
    target: float = 1e-2
    shift: float = 0.0  # added to the decay, so that filters need not decay to zero
    filter_lr: float = 1.0  # learning-rate multiplier of the MLP
    position_lr: float = 1.0  # learning-rate multiplier of the position features
    filter_std: float | None = None  # of the MLP's initial kernels; default: torch's for linear layers

    @nn.nowrap
    def long_state(self, batch: int) -> long_conv.LongConvState:
        return long_conv.init_state(batch, self.l_max, self.width, self.dtype)

    @nn.nowrap
    def filter_module(self, **kwargs: Any) -> _hyena.Filter:
        """The module with the parameters `filter`; it returns all taps [O, W, D]."""
        return _hyena.Filter(
            self.convolutions(), self.width, self.l_max, self.features, self.hidden, self.inner, self.sine, self.fast,
            self.slow, self.target, self.shift, self.filter_lr, self.position_lr, self.filter_std,
            jnp.promote_types(self.dtype, jnp.float32), **kwargs,
        )  # fmt: skip

    def filters(self) -> list[tuple[jax.Array, jax.Array]]:
        return list(zip(self.filter_module(name="filter")(), self.skip(), strict=True))

    def convolve(
        self, item: tuple[jax.Array, jax.Array], x_BTD: jax.Array, state: Any, call: Call
    ) -> tuple[jax.Array, long_conv.LongConvState]:
        w_WD, skip_D = item
        return call.op("long_conv")(x_BTD, w_WD=w_WD, skip_D=skip_D, state=state)
