"""The states of all layers as one stack; an op reads and writes its own layer in place, so decoding copies no state."""

from typing import Any, NamedTuple

import jax


class Layered(NamedTuple):
    """Passed to an op instead of its state: the op uses layer `layer` of the stack and returns the stack."""

    stack: Any  # the state's tuple, each leaf with a leading layer axis: [L, B, ...]
    layer: jax.Array  # int32: index into that axis
