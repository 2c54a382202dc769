"""Time handling shared by all ops: document starts, padding, and the loops over tokens and over chunks.

`pos` [B, T] int32 is the position of a token in its document. START begins a document: the state is reset. PAD is
padding: the state is unchanged and the output is zero; within one call only the end of a row may be PAD. A reset is a
mask on segment numbers, never a huge negative log-decay: adding -1e30 to a cumulative sum would round away the small
decays around it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

START = 0
PAD = -1
AT_MOST = "at_most_"  # prefix of the named scope of a bounded loop


def accumulation_dtype(*arrays: jax.Array) -> jnp.dtype:
    """The dtype of states, norms and decay sums: float64 if an input is float64, else float32."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def positions(pos: jax.Array | None, x: jax.Array) -> jax.Array:
    """`pos`, or for None an array [B, T] without starts or padding, whose masks XLA folds to constants."""
    return jnp.full(x.shape[:2], START + 1, jnp.int32) if pos is None else pos


def valid(pos_BT: jax.Array) -> jax.Array:
    """[B, T] bool: not padding."""
    return pos_BT >= 0


def segments(pos_BT: jax.Array) -> jax.Array:
    """[B, T] int32: document number of each token within this call; document 0 continues the incoming state."""
    return jnp.cumsum(pos_BT == START, axis=1, dtype=jnp.int32)


def expand(mask: jax.Array, like: jax.Array) -> jax.Array:
    """Append axes to `mask` until it broadcasts against `like`, whose leading axes it shares."""
    return mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim))


def select(mask: jax.Array, x: jax.Array, otherwise: ArrayLike = 0) -> jax.Array:
    """x where `mask` (over x's leading axes) is true, else `otherwise`; masked elements have exactly zero gradient."""
    return jnp.where(expand(mask, x), x, otherwise)


def clean(pos_BT: jax.Array, *xs: jax.Array) -> tuple[jax.Array, ...]:
    """Inputs with padding set to zero, so that its values, NaN included, reach no product and no gradient."""
    chex.assert_equal_shape_prefix([pos_BT, *xs], pos_BT.ndim)
    return tuple(select(valid(pos_BT), x) for x in xs)


def last_segment(pos_BT: jax.Array) -> jax.Array:
    """[B, T] bool: tokens of the row's last document, without padding. The final state belongs to this document."""
    seg_BT = segments(pos_BT)
    return (seg_BT == seg_BT[:, -1:]) & valid(pos_BT)


def continues(pos_BT: jax.Array) -> jax.Array:
    """[B] bool: no document starts in this call, so the incoming state is not reset."""
    return ~jnp.any(pos_BT == START, axis=1)


def scan_time(
    step: Callable, state: Any, xs: Sequence[jax.Array], pos_BT: jax.Array, unroll: int = 1, empty: Any = None
) -> tuple[jax.Array, Any]:
    """The recurrent form: scans `step(state, *x_t) -> (state, y_t)` over axis 1 and handles resets and padding.

    The leading axis of the state is the batch. At the first token of a document the state is reset to `empty` (default:
    zeros). At padding the state is unchanged and the output is zero. Returns (y [B, T, ...], final state).
    """
    xs = clean(pos_BT, *xs)
    empty = jax.tree.map(jnp.zeros_like, state) if empty is None else empty

    def body(state, inputs):
        pos_B, *x = inputs
        before = jax.tree.map(lambda s, e: jnp.where(expand(pos_B != START, s), s, e), state, empty)
        after, y = step(before, *x)
        real_B = pos_B >= 0
        state = jax.tree.map(lambda new, old: jnp.where(expand(real_B, new), new, old), after, state)
        return state, select(real_B, y)

    state, y = jax.lax.scan(body, state, tuple(jnp.moveaxis(x, 1, 0) for x in (pos_BT, *xs)), unroll=unroll)
    return jnp.moveaxis(y, 0, 1), state


def split_chunks(chunk: int, pos_BT: jax.Array, *xs: jax.Array) -> tuple[jax.Array, ...]:
    """[B, T, ...] -> [ceil(T / C), B, C, ...]; the last chunk is filled with PAD in `pos` and zeros elsewhere."""
    extra = -pos_BT.shape[1] % chunk

    def cut(x, fill):
        x = jnp.pad(x, ((0, 0), (0, extra)) + ((0, 0),) * (x.ndim - 2), constant_values=fill)
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    return cut(pos_BT, PAD), *(cut(x, 0) for x in xs)


def join_chunks(y: jax.Array, time: int) -> jax.Array:
    """Inverse of `split_chunks`: [ceil(T / C), B, C, ...] -> [B, T, ...]."""
    y = jnp.moveaxis(y, 0, 1)
    return y.reshape(y.shape[0], -1, *y.shape[3:])[:, :time]


def scan_chunks(
    form: Callable, state: Any, xs: Sequence[jax.Array], pos_BT: jax.Array, chunk: int, remat: bool = True
) -> tuple[jax.Array, Any]:
    """The chunkwise form of any op: scans `form(*xs, state=, pos=)` over chunks of `chunk` tokens and carries the state.

    With `remat` only the states between chunks are stored for the backward pass, which recomputes the rest. If T <= chunk
    this is a single call of `form`. Returns (y [B, T, ...], final state).
    """
    time = pos_BT.shape[1]
    if 0 < time <= chunk:
        return form(*xs, state=state, pos=pos_BT)

    def body(state, inputs):
        pos_BC, *x = inputs
        y, state = form(*x, state=state, pos=pos_BC)
        return state, y

    body = jax.checkpoint(body, prevent_cse=False) if remat else body
    state, y = jax.lax.scan(body, state, split_chunks(min(chunk, max(time, 1)), pos_BT, *xs))
    return join_chunks(y, time), state


def while_at_most(most: int, condition: Callable, body: Callable, start: Any) -> tuple[Any, jax.Array]:
    """(carry, number of steps): applies `body` to the carry while `condition(carry)` is true, at most `most` times.

    The law of loops (`jaxseq.testing.loops`) recognises a bounded loop by its named scope.
    """
    with jax.named_scope(f"{AT_MOST}{most}"):
        return jax.lax.while_loop(
            lambda counted: (counted[1] < most) & condition(counted[0]),
            lambda counted: (body(counted[0]), counted[1] + 1),
            (start, jnp.int32(0)),
        )
