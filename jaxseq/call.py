"""The arguments of a mixer besides its input and state, and its result."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxseq import forms


@struct.dataclass
class Call:
    """The arguments of one call of a network. They are the same for all its layers, except for `label` and `layer`.

    A pytree: arrays are children, the rest is static. Mixers only read it.
    """

    pos_BT: jax.Array  # int32: position in the document; padding (-1) only at the end of a row
    plan: forms.Plan = struct.field(pytree_node=False)
    train: bool = struct.field(pytree_node=False, default=False)
    label: str | None = struct.field(pytree_node=False, default=None)  # the mixer's name in the stack: selects its form
    layer: Any = 0  # index of the block, traced in a scan over layers; for initial values and `Mixer.place`
    streams: dict[str, jax.Array] = struct.field(default_factory=dict)  # values [B, T, D] from earlier layers, by name

    @classmethod
    def of(cls, pos_BT: jax.Array, form: Any = "recurrent", *, train: bool = False, **fields: Any) -> "Call":
        """A Call whose plan is made from a form (a name, a mapping from labels to names, or a Plan)."""
        purpose = "train" if train else "decode" if pos_BT.shape[1] == 1 else "prefill"
        return cls(jnp.asarray(pos_BT), forms.plan(form, purpose), train, **fields)

    def op(self, name: str) -> Callable[..., tuple[jax.Array, Any]]:
        """Op `name` in the planned form, at the positions of this call: `y, state = call.op(name)(*xs, state=state, …)`."""
        return partial(self.plan.op(name, self.label), pos=self.pos_BT)


class Mixed(NamedTuple):
    """The result of a mixer."""

    y_BTD: jax.Array
    state: Any  # the next state
    streams: dict[str, jax.Array] = {}
