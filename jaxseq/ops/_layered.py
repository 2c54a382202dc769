"""A stack of layers' states of which one layer is read and written where it lies, so that decoding copies no state."""

from typing import Any, NamedTuple

import jax


class Layered(NamedTuple):
    """Given to an op in the place of its state, it says: use this layer of the stack. The op returns the stack."""

    stack: Any  # the state's tuple, each leaf with the layers' axis in front: [L, B, ...]
    layer: jax.Array  # int32: index into that axis
