"""The state of full or windowed attention in 8-bit integers: keys and values of a token and head share a scale each.

k ≈ scale * codes with scale = max|k| / 127 over the channels of a token and head, and the same for v. Attention reads the rounded
keys and values in every form, those of the same call included, so all forms compute the same.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxseq.ops import attention
from jaxseq.ops._layered import Layered
from jaxseq.ops.attention import AttentionState
from jaxseq.weights import int8_rows


class QuantizedRing(NamedTuple):
    """As `AttentionState`, with codes and float32 scales in place of keys and values. Empty slots have the scale 0."""

    k_BGSK: jax.Array  # int8
    v_BGSV: jax.Array
    k_scale_BGS1: jax.Array
    v_scale_BGS1: jax.Array
    count_B: jax.Array


def init_state(batch: int, size: int, kv_heads: int, key_size: int, value_size: int) -> QuantizedRing:
    """The empty ring buffer of `size` slots."""
    k_BGSK, v_BGSV = (jnp.zeros((batch, kv_heads, size, channels), jnp.int8) for channels in (key_size, value_size))
    k_BGS1, v_BGS1 = (jnp.zeros((batch, kv_heads, size, 1), jnp.float32) for _ in range(2))  # no buffer is donated twice
    return QuantizedRing(k_BGSK, v_BGSV, k_BGS1, v_BGS1, jnp.zeros((batch,), jnp.int32))


def attend(
    op: Callable[..., tuple[jax.Array, Any]], pos_BT: jax.Array, q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGV: jax.Array,
    state: QuantizedRing | Layered | None, **options: Any,
) -> tuple[jax.Array, QuantizedRing | Layered]:  # fmt: skip
    """(output of the op `attention`, next state). The gradient passes the rounding unchanged (straight-through)."""
    layered = state if isinstance(state, Layered) else None
    ring: Any = jax.tree.map(lambda x: x[layered.layer], layered.stack) if layered else state
    (k_codes, k_scale), (v_codes, v_scale) = (int8_rows(x, (-1,)) for x in (k_BTGK, v_BTGV))
    rounded = [
        x + jax.lax.stop_gradient((codes * scale).astype(x.dtype) - x)
        for x, codes, scale in ((k_BTGK, k_codes, k_scale), (v_BTGV, v_codes, v_scale))
    ]
    y_BTHV, after = op(q_BTHK, *rounded, state=ring and _numbers(ring, k_BTGK.dtype), **options)
    if ring is None:
        batch, kv_heads, size, _ = after.k_BGSK.shape
        ring = init_state(batch, size, kv_heads, k_BTGK.shape[3], v_BTGV.shape[3])
    if pos_BT.shape[1]:
        codes = attention.next_state(AttentionState(ring.k_BGSK, ring.v_BGSV, ring.count_B), k_codes, v_codes, pos_BT)
        scales = attention.next_state(AttentionState(*ring[2:]), k_scale, v_scale, pos_BT)
        ring = QuantizedRing(*codes[:2], *scales)
    if layered:
        put = lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, layered.layer, 0)  # noqa: E731
        return y_BTHV, Layered(jax.tree.map(put, layered.stack, ring), layered.layer)
    return y_BTHV, ring


def _numbers(ring: QuantizedRing, dtype: Any) -> AttentionState:
    k, v = ring.k_BGSK * ring.k_scale_BGS1, ring.v_BGSV * ring.v_scale_BGS1
    return AttentionState(k.astype(dtype), v.astype(dtype), ring.count_B)
