"""Causal deformable attention: each head reads a few points of the recent past (Deformable DETR, Zhu et al. 2020,
arXiv:2010.04159, eq. 2, in one dimension and with a bounded look-back).

    y_t = sum_p weight_tp v(t - offset_tp),   v(s) = (1 - r) v_n + r v_{n-1} at s = n - r, 0 <= r < 1

Every head has P points; offsets are in tokens, from 0 (the token itself) to `reach`, and are clipped to this range. Between two
tokens values are interpolated linearly, so y is continuous in the offsets. As pixels outside of an image do in the paper, tokens
before the start of the document count as zero and keep their weight: the weights are not divided by those of the points inside.
A token costs O(P), whatever the reach.

State: the last `reach` values of the document, oldest first, in their dtype; zero before its start. Products are summed in the
accumulation dtype; offsets must not be in less than float32, which is exact for a fraction of a token within 2^16 tokens.

No `summary`: the state is a shift register, so a summary would contain the values themselves.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq.ops import _time
from jaxseq.ops._example import Example, stresses


class DeformableAttentionState(NamedTuple):
    """Shift register of values, in their dtype."""

    v_BWHV: jax.Array  # the last `reach` values, oldest first; zero before the document's start


def init_state(
    batch: int, reach: int, heads: int, value_size: int, dtype: DTypeLike = jnp.float32
) -> DeformableAttentionState:  # fmt: skip
    """The empty state: zeros in `dtype`."""
    return DeformableAttentionState(jnp.zeros((batch, reach, heads, value_size), dtype))


def _prepare(v_BTHV, offsets_BTHP, weights_BTHP, reach, state, pos):
    chex.assert_scalar_positive(reach)
    chex.assert_rank([v_BTHV, offsets_BTHP], 4)
    chex.assert_equal_shape_prefix([v_BTHV, offsets_BTHP], 3)
    chex.assert_equal_shape([offsets_BTHP, weights_BTHP])
    pos_BT = _time.positions(pos, v_BTHV)
    chex.assert_shape(pos_BT, v_BTHV.shape[:2])
    batch, _, heads, size = v_BTHV.shape
    state = init_state(batch, reach, heads, size, v_BTHV.dtype) if state is None else state
    chex.assert_shape(state.v_BWHV, (batch, reach, heads, size))
    return pos_BT, state, *_time.clean(pos_BT, v_BTHV, offsets_BTHP, weights_BTHP)


def _points(v_BSHV, offsets_BTHP, weights_BTHP, first_BT, reach, dtype):
    """y [B, T, H, V] from the values of S = reach + T tokens: token t is number reach + t, and a query reads from first_t on."""
    batch, time, heads, points = offsets_BTHP.shape
    acc = _time.accumulation_dtype(v_BSHV, offsets_BTHP, weights_BTHP)
    turned = lambda x_BTHP: jnp.moveaxis(x_BTHP.astype(acc), 2, 1)  # noqa: E731
    offset_BHTP = jnp.clip(turned(offsets_BTHP), 0, reach)
    back_BHTP = jnp.minimum(jnp.floor(offset_BHTP), reach - 1)  # never one token before the reach, whose gradient is not zero
    part_BHTP = offset_BHTP - back_BHTP
    newer_BHTP = (reach + jnp.arange(time))[:, None] - back_BHTP.astype(jnp.int32)
    v_BHSV = jnp.moveaxis(v_BSHV, 2, 1)
    y_BHTV = jnp.zeros((batch, heads, time, v_BSHV.shape[3]), acc)
    for number_BHTP, share_BHTP in ((newer_BHTP, 1 - part_BHTP), (newer_BHTP - 1, part_BHTP)):
        index_BHN1 = number_BHTP.reshape(batch, heads, time * points, 1)
        v_BHTPV = jnp.take_along_axis(v_BHSV, index_BHN1, axis=2).reshape(*number_BHTP.shape, -1).astype(acc)
        weight_BHTP = turned(weights_BTHP) * jnp.where(number_BHTP >= first_BT[:, None, :, None], share_BHTP, 0)
        y_BHTV += jnp.einsum("bhtp,bhtpv->bhtv", weight_BHTP, v_BHTPV)
    return jnp.moveaxis(y_BHTV, 1, 2).astype(dtype)


def recurrent(
    v_BTHV: jax.Array, offsets_BTHP: jax.Array, weights_BTHP: jax.Array, *, reach: int,
    state: DeformableAttentionState | None = None, pos: jax.Array | None = None,
) -> tuple[jax.Array, DeformableAttentionState]:  # fmt: skip
    """One token after another: the register slides by one, and the points are read from it."""
    pos_BT, state, *xs = _prepare(v_BTHV, offsets_BTHP, weights_BTHP, reach, state, pos)
    all_B1 = jnp.zeros((v_BTHV.shape[0], 1), jnp.int32)  # the register is zero before the document

    def step(state, v_BHV, offsets_BHP, weights_BHP):
        v_BSHV = jnp.concatenate([state.v_BWHV, v_BHV[:, None]], axis=1)
        y_B1HV = _points(v_BSHV, offsets_BHP[:, None], weights_BHP[:, None], all_B1, reach, v_BHV.dtype)
        return DeformableAttentionState(v_BSHV[:, 1:]), y_B1HV[:, 0]

    return _time.scan_time(step, state, xs, pos_BT)


def parallel(
    v_BTHV: jax.Array, offsets_BTHP: jax.Array, weights_BTHP: jax.Array, *, reach: int,
    state: DeformableAttentionState | None = None, pos: jax.Array | None = None,
) -> tuple[jax.Array, DeformableAttentionState]:  # fmt: skip
    """The points of all tokens are read at once; those in another document are masked."""
    pos_BT, state, *xs = _prepare(v_BTHV, offsets_BTHP, weights_BTHP, reach, state, pos)
    v_BTHV, offsets_BTHP, weights_BTHP = xs
    time = v_BTHV.shape[1]
    if time == 0:
        return v_BTHV, state
    v_BSHV = jnp.concatenate([state.v_BWHV, v_BTHV], axis=1)
    first_BT = jax.lax.cummax(jnp.where(pos_BT == _time.START, reach + jnp.arange(time), 0), axis=1)
    y_BTHV = _points(v_BSHV, offsets_BTHP, weights_BTHP, first_BT, reach, v_BTHV.dtype)

    last_B1 = jnp.sum(_time.valid(pos_BT), axis=1, keepdims=True)  # padding is a suffix
    number_BW = last_B1 + jnp.arange(reach)
    kept_BWHV = jnp.take_along_axis(v_BSHV, number_BW[..., None, None], axis=1)
    kept_BWHV = _time.select(number_BW >= first_BT[:, -1:], kept_BWHV)
    return _time.select(_time.valid(pos_BT), y_BTHV), DeformableAttentionState(kept_BWHV)


def chunkwise(
    v_BTHV: jax.Array, offsets_BTHP: jax.Array, weights_BTHP: jax.Array, *, reach: int,
    state: DeformableAttentionState | None = None, pos: jax.Array | None = None, chunk: int = 256,
) -> tuple[jax.Array, DeformableAttentionState]:  # fmt: skip
    """`parallel` on chunks of `chunk` tokens, which limits the memory for the values at the points."""
    pos_BT, state, *xs = _prepare(v_BTHV, offsets_BTHP, weights_BTHP, reach, state, pos)
    if v_BTHV.shape[1] == 0:
        return v_BTHV, state

    def form(*xs, state, pos):
        return parallel(*xs, reach=reach, state=state, pos=pos)

    return _time.scan_chunks(form, state, xs, pos_BT, chunk)


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}
CUT = "halo"


def _inputs(key: jax.Array, batch: int, time: int, dtype: DTypeLike, reach: int) -> tuple[jax.Array, ...]:
    key_v, key_offset, key_weight = jax.random.split(key, 3)
    acc = jnp.promote_types(dtype, jnp.float32)
    offsets_BTHP = jax.random.uniform(key_offset, (batch, time, 2, 3), acc, 0, reach)
    weights_BTHP = jax.nn.softmax(jax.random.normal(key_weight, offsets_BTHP.shape, acc))
    return jax.random.normal(key_v, (batch, time, 2, 5), dtype), offsets_BTHP, weights_BTHP


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs and state, see `jaxseq.ops.Example`."""
    key_x, key_prefix = jax.random.split(key)
    options = {"reach": 9}
    state = recurrent(*_inputs(key_prefix, batch, 11, dtype, **options), **options)[1]
    return Example(_inputs(key_x, batch, time, dtype, **options), {}, options, state)


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """The log-decays of `stresses` are used as logarithms of offset / reach."""
    base = example(key, batch, time, dtype)
    v_BTHV, offsets_BTHP, weights_BTHP = base.xs

    def moved(log_BTHP):
        return base._replace(xs=(v_BTHV, base.options["reach"] * jnp.exp(log_BTHP.astype(offsets_BTHP.dtype)), weights_BTHP))

    return stresses(key, base, offsets_BTHP.shape, moved)
