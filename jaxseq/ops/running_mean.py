"""Running mean over the tokens of a document: the causal version of global average pooling.

    y_t = (x_1 + ... + x_t) / t

Causal models use it in place of the global average of squeeze-and-excitation (Hu et al. 2017, arXiv:1709.01507, eq. 2) and,
applied to squares, of the norm over positions in global response normalisation (Woo et al. 2023, arXiv:2301.00808, eq. 1).
State: the sum [B, D] in the accumulation dtype, and the number of tokens in it [B].
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq.ops import _decay, _time
from jaxseq.ops._example import Example, stresses


class RunningMeanState(NamedTuple):
    """Sum [B, D], in the accumulation dtype, and number of tokens [B]."""

    sum_BD: jax.Array
    count_B: jax.Array  # int32


class Summary(NamedTuple):
    """Effect of a segment on the incoming state: keep or reset it, then add the sum and the count."""

    keep_B: jax.Array  # bool: no document starts in the segment
    sum_BD: jax.Array
    count_B: jax.Array


def init_state(batch: int, width: int, dtype: DTypeLike = jnp.float32) -> RunningMeanState:
    """The empty state, in the accumulation dtype for inputs of `dtype`."""
    acc = _time.accumulation_dtype(jnp.zeros((), dtype))
    return RunningMeanState(jnp.zeros((batch, width), acc), jnp.zeros((batch,), jnp.int32))


def _prepare(x_BTD, state, pos):
    chex.assert_rank(x_BTD, 3)
    pos_BT = _time.positions(pos, x_BTD)
    chex.assert_shape(pos_BT, x_BTD.shape[:2])
    acc = _time.accumulation_dtype(x_BTD)
    if state is None:
        state = init_state(x_BTD.shape[0], x_BTD.shape[2], acc)
    chex.assert_shape(state.sum_BD, (x_BTD.shape[0], x_BTD.shape[2]))
    return acc, pos_BT, state


def recurrent(
    x_BTD: jax.Array, *, state: RunningMeanState | None = None, pos: jax.Array | None = None
) -> tuple[jax.Array, RunningMeanState]:
    """One token after another."""
    acc, pos_BT, state = _prepare(x_BTD, state, pos)

    def step(state, x_BD):
        state = RunningMeanState(state.sum_BD + x_BD.astype(acc), state.count_B + 1)
        return state, (state.sum_BD / state.count_B[:, None]).astype(x_BD.dtype)

    return _time.scan_time(step, state, (x_BTD,), pos_BT)


def _inside(x_BTD, state, pos_BT):
    """Running means [B, T, D] of one chunk: a product with a 0/1 mask, plus the incoming state.

    Sums are never differences of longer cumulative sums, which would carry the rounding error of another document.
    """
    time, seg_BT = pos_BT.shape[1], _time.segments(pos_BT)
    mask_BTS = (seg_BT[:, :, None] == seg_BT[:, None]) & jnp.tril(jnp.ones((time, time), bool)) & _time.valid(pos_BT)[:, None]
    exact = jax.lax.Precision.HIGHEST  # an accelerator's default would round x to bfloat16
    sum_BTD = jnp.einsum("bts,bsd->btd", mask_BTS.astype(x_BTD.dtype), x_BTD, precision=exact)
    sum_BTD += _time.select(seg_BT == 0, jnp.broadcast_to(state.sum_BD[:, None], sum_BTD.shape))
    count_BT = jnp.sum(mask_BTS, axis=2, dtype=jnp.int32) + jnp.where(seg_BT == 0, state.count_B[:, None], 0)
    return sum_BTD / jnp.maximum(count_BT, 1)[..., None]


def _summary(x_BTD, pos_BT) -> Summary:
    last_BT = _time.last_segment(pos_BT)
    count_B = jnp.sum(last_BT, axis=1, dtype=jnp.int32)
    return Summary(_time.continues(pos_BT), jnp.sum(_time.select(last_BT, x_BTD), axis=1), count_B)


def summary(x_BTD: jax.Array, *, pos: jax.Array | None = None) -> Summary:
    """Sum and number of tokens of each row's last document. T >= 1."""
    acc, pos_BT, _ = _prepare(x_BTD, None, pos)
    return _summary(x_BTD.astype(acc), pos_BT)


def combine(first: Summary, second: Summary) -> Summary:
    """The summary of two segments, one after the other; associative."""
    sum_BD = second.sum_BD + _time.select(second.keep_B, first.sum_BD)
    count_B = second.count_B + jnp.where(second.keep_B, first.count_B, 0)
    return Summary(first.keep_B & second.keep_B, sum_BD, count_B)


def apply(summary: Summary, state: RunningMeanState) -> RunningMeanState:
    """The state after a segment with this summary, for the state before it."""
    sum_BD = summary.sum_BD + _time.select(summary.keep_B, state.sum_BD)
    return RunningMeanState(sum_BD, summary.count_B + jnp.where(summary.keep_B, state.count_B, 0))


def parallel(
    x_BTD: jax.Array, *, state: RunningMeanState | None = None, pos: jax.Array | None = None
) -> tuple[jax.Array, RunningMeanState]:
    """All chunks of 64 tokens at once; their states are combined by an associative scan."""
    acc, pos_BT, before = _prepare(x_BTD, state, pos)
    time = x_BTD.shape[1]
    if time == 0:
        return x_BTD, before
    (clean_BTD,) = _time.clean(pos_BT, x_BTD.astype(acc))
    pos_ZBC, x_ZBCD = _time.split_chunks(min(64, time), pos_BT, clean_BTD)
    front, after = _decay.chunk_parallel(jax.vmap(_summary)(x_ZBCD, pos_ZBC), combine, before, apply)
    y_BTD = _time.join_chunks(jax.vmap(_inside)(x_ZBCD, front, pos_ZBC), time)
    return _time.select(_time.valid(pos_BT), y_BTD).astype(x_BTD.dtype), after


def chunkwise(
    x_BTD: jax.Array, *, state: RunningMeanState | None = None, pos: jax.Array | None = None, chunk: int = 64
) -> tuple[jax.Array, RunningMeanState]:
    """One chunk after another, with a masked product inside each; memory is linear in T."""
    _, pos_BT, state = _prepare(x_BTD, state, pos)
    if x_BTD.shape[1] == 0:
        return x_BTD, state
    return _time.scan_chunks(parallel, state, (x_BTD,), pos_BT, chunk)


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}
CUT = "affine"


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`."""
    key_x, key_prefix = jax.random.split(key)
    state = recurrent(1 + jax.random.normal(key_prefix, (batch, 32, 5), dtype))[1]
    return Example((jax.random.normal(key_x, (batch, time, 5), dtype),), {}, {}, state)


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """The op has no decay: the log-decays of `stresses` become inputs near 1, near 0, and both."""
    base = example(key, batch, time, dtype)
    return stresses(key, base, base.xs[0].shape, lambda log_BTD: base._replace(xs=(jnp.exp(log_BTD),)))
