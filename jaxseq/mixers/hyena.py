"""Hyena: gates and long convolutions whose filters are an MLP of the position (Poli et al. 2023, arXiv:2302.10866)."""

from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn

from jaxseq import forms
from jaxseq.mixers import _hyena
from jaxseq.ops import long_conv


class Hyena(_hyena.GatedConvolutions):
    """Hyena with implicit filters of `l_max` taps, cut off behind them.

    The state is the last l_max - 1 inputs of every long convolution: exact, and as large as it has to be. Filters are computed
    anew in every call, for a single token too; `jaxseq modal` turns a trained model into one with `hyena_modal`, whose state
    and step are small. `l_max` belongs to the weights: position is measured as a fraction of it, so that another l_max is
    another filter.
    """

    hidden_role: ClassVar[str] = "other"

    l_max: int = 256  # taps of a filter; at least the length of training rows
    features: int = 5  # of a position: time, and pairs of cosine and sine
    hidden: int = 64  # width of the filter's MLP
    inner: int = 2  # its hidden layers after the first
    sine: float = 1.0  # first frequency of its sines; the paper has 14 for language and 10 for synthetic tasks (table A.3)
    fast: float = 0.3  # the first and the last channel's decay to `target`, as fractions of l_max
    slow: float = 1.5
    target: float = 1e-2
    shift: float = 0.0  # keeps filters from decaying to zero
    filter_lr: float = 1.0  # learning-rate multiplier of the MLP
    position_lr: float = 1.0  # and of its input features
    filter_std: float | None = None  # of the MLP's initial kernels; default: torch's for linear layers

    @nn.nowrap
    def long_state(self, batch):
        return long_conv.init_state(batch, self.l_max, self.width, self.dtype)

    @nn.nowrap
    def filter_module(self, **kwargs) -> _hyena.Filter:
        """The module behind the parameters `filter`; applied alone it gives all taps [O, W, D]."""
        return _hyena.Filter(
            self.convolutions(), self.width, self.l_max, self.features, self.hidden, self.inner, self.sine, self.fast,
            self.slow, self.target, self.shift, self.filter_lr, self.position_lr, self.filter_std,
            jnp.promote_types(self.dtype, jnp.float32), **kwargs,
        )  # fmt: skip

    def filters(self):
        return list(zip(self.filter_module(name="filter")(), self.skip(), strict=True))

    def convolve(self, item, x_BTD, state, pos_BT, form):
        w_WD, skip_D = item
        return forms.op("long_conv", form, x_BTD.shape[1])(x_BTD, w_WD=w_WD, skip_D=skip_D, state=state, pos=pos_BT)
