"""Bases of all blocks: a group of mixers on the residual stream, with one norm per mixer."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.layers import NORMS, Mixer, constrain


class Block(nn.Module):
    """x_BTD, state, streams = block(x_BTD, state, call)

    The state is a tuple with one entry per mixer; `streams` holds values for later segments. The residual stream
    keeps its dtype; mixers compute in their own. A subclass defines `__call__`; its additional fields are set by
    `config.model.<name of its file>`.
    """

    mixers: tuple[Mixer, ...] = ()
    norm: str = "rmsnorm"
    norm_eps: float = 1e-5
    dropout: float = 0.0  # of each mixer's output
    dtype: Any = jnp.float32

    preserve_adopted_names: ClassVar[bool] = True

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> tuple:
        return tuple(mixer.init_state(batch, context) for mixer in self.mixers)

    @nn.nowrap
    def normed(self, x_BTD: jax.Array, name: str) -> jax.Array:
        """x after a norm with the parameters `norm_<name>`; only inside a compact method."""
        return NORMS[self.norm](self.norm_eps, self.dtype, name=f"norm_{name}")(x_BTD)

    @nn.nowrap
    def run(self, mixer: Mixer, h_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        """Run one mixer, then dropout; only inside a compact method."""
        mixed = mixer(h_BTD, state, call)
        return mixed._replace(y_BTD=nn.Dropout(self.dropout, deterministic=not call.train)(mixed.y_BTD))


class Serial(Block):
    """Mixers one after another, each with a residual connection: h = before(x), y = mixer(h), x <- after(x, h, y).

    A subclass defines `before` and `after`.
    """

    def before(self, x_BTD: jax.Array, name: str) -> jax.Array:
        """The mixer's input; `name` is the mixer's."""
        raise NotImplementedError

    def after(self, x_BTD: jax.Array, h_BTD: jax.Array, y_BTD: jax.Array, name: str) -> jax.Array:
        """The residual stream after the mixer, whose output y has the dtype of x."""
        raise NotImplementedError

    @nn.compact
    def __call__(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        states, streams = [], {}
        for mixer, old in zip(self.mixers, state or (None,) * len(self.mixers), strict=True):
            h_BTD = self.before(x_BTD, mixer.name).astype(self.dtype)
            y_BTD, new, written = self.run(mixer, h_BTD, old, call)
            streams |= written
            next_BTD = self.after(x_BTD, h_BTD, y_BTD.astype(x_BTD.dtype), mixer.name)
            x_BTD = constrain(next_BTD.astype(x_BTD.dtype), ("batch", "time", None))
            states.append(new)
        return Mixed(x_BTD, tuple(states), streams)
