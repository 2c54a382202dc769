"""The pre-norm residual chain of mixers, x <- x + mixer(norm(x)), in the order of the stack."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq import forms
from jaxseq.layers import NORMS, Mixer, constrain


class Residual(nn.Module):
    """State: a tuple, one entry a mixer. The residual stream keeps its own dtype; mixers compute in theirs."""

    mixers: tuple[Mixer, ...]
    norm: str = "rmsnorm"
    norm_eps: float = 1e-5
    dropout: float = 0.0  # of each mixer's output
    dtype: Any = jnp.float32

    preserve_adopted_names: ClassVar[bool] = True

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> tuple:
        return tuple(mixer.init_state(batch, context) for mixer in self.mixers)

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, state: tuple | None, pos_BT: jax.Array, form: forms.Form,
        layer: jax.Array | int | None = None, train: bool = False,
    ) -> tuple[jax.Array, tuple]:  # fmt: skip
        after = []
        for mixer, before in zip(self.mixers, state or (None,) * len(self.mixers), strict=True):
            h_BTD = NORMS[self.norm](self.norm_eps, self.dtype, name=f"norm_{mixer.name}")(x_BTD)
            h_BTD, s = mixer(h_BTD, before, pos_BT, forms.of_label(form, mixer.name), layer, train)
            h_BTD = nn.Dropout(self.dropout, deterministic=not train)(h_BTD)
            x_BTD = constrain(x_BTD + h_BTD.astype(x_BTD.dtype), ("batch", "time", None))
            after.append(s)
        return x_BTD, tuple(after)
