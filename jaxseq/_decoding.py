"""The loop of generation: one compiled call makes several steps, until all rows are done."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxseq.models.lm import LMState

BLOCK = 16  # tokens per call of the compiled loop; stop strings and callbacks are handled between calls


class Drafts(NamedTuple):
    """What came of a draft model's proposals, per row: arrays [B] int32 in the loop, numbers in a result."""

    calls: jax.Array | int  # of the model, to check the proposals
    tokens: jax.Array | int  # that these calls generated
    proposed: jax.Array | int
    accepted: jax.Array | int


class Carry(NamedTuple):
    """State of the generation between two calls of the compiled loop."""

    state: LMState
    token_B: jax.Array  # last token of each row, not yet part of the state
    done_B: jax.Array  # bool
    number_B: jax.Array  # int32: number of tokens generated so far
    draft: LMState | None = None  # state of the draft model, after the same tokens
    drafts: Drafts | None = None


def until_done(step: Callable[[Carry], tuple[Carry, jax.Array]], carry: Carry, steps: int, width: int) -> tuple[Carry, jax.Array]:
    """At most `steps` times carry, ids [B, width] = step(carry), until all rows are done: (carry, ids [B, steps * width]).

    An id of -1 is no token.
    """

    def going(loop):
        i, carry, _ = loop
        return (i < steps) & ~jnp.all(carry.done_B)

    def body(loop):
        i, carry, ids_BT = loop
        carry, new_BT = step(carry)
        return i + 1, carry, jax.lax.dynamic_update_slice(ids_BT, new_BT, (0, i * width))

    ids_BT = jnp.full((carry.token_B.shape[0], steps * width), -1, jnp.int32)
    _, carry, ids_BT = jax.lax.while_loop(going, body, (jnp.int32(0), carry, ids_BT))
    return carry, ids_BT
