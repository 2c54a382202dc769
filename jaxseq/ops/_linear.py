"""Elementwise linear recurrences h_t = a_t h_{t-1} + b_t, shared by minLSTM and RG-LRU.

An op defines `affine`, a function from its inputs x_BTD and gate_BTD to a_BTD and b_BTD, and gets the forms below. The first
token of a document has a = 0; padding has a = 1 and b = 0. Everything is computed in the accumulation dtype.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq.ops import _time


class LinearState(NamedTuple):
    """State h [B, D] of an elementwise linear recurrence."""

    h_BD: jax.Array  # in the accumulation dtype


class Summary(NamedTuple):
    """Effect of a segment on the incoming state: h -> A h + h'."""

    A_BD: jax.Array  # product of all a_t; 0 if a document starts in the segment
    h_BD: jax.Array  # h': the state after the segment, starting from zero


def init_state(batch: int, width: int, dtype: DTypeLike = jnp.float32) -> LinearState:
    """The empty state, in the accumulation dtype for inputs of `dtype`."""
    return LinearState(jnp.zeros((batch, width), _time.accumulation_dtype(jnp.zeros((), dtype))))


def combine(first: Summary, second: Summary) -> Summary:
    """The summary of two segments, one after the other; associative."""
    return Summary(second.A_BD * first.A_BD, second.A_BD * first.h_BD + second.h_BD)


def apply(summary: Summary, state: LinearState) -> LinearState:
    """The state after a segment with this summary, for the state before it."""
    return LinearState(summary.A_BD * state.h_BD + summary.h_BD)


def _elements(a_BTD, b_BTD, pos_BT) -> Summary:
    """The summary of each single token, [B, T, D] each."""
    a_BTD = jnp.where(_time.expand(_time.valid(pos_BT), a_BTD), _time.select(pos_BT != _time.START, a_BTD), 1)
    return Summary(a_BTD, _time.select(_time.valid(pos_BT), b_BTD))


def _steps(a_BTD, b_BTD, h_BD, pos_BT):
    """All h [B, T, D], one token after another."""
    a_BTD, b_BTD = _elements(a_BTD, b_BTD, pos_BT)

    def step(h_BD, inputs):
        a_BD, b_BD = inputs
        h_BD = a_BD * h_BD + b_BD
        return h_BD, h_BD

    _, h_TBD = jax.lax.scan(step, h_BD, (jnp.moveaxis(a_BTD, 1, 0), jnp.moveaxis(b_BTD, 1, 0)))
    return jnp.moveaxis(h_TBD, 0, 1)


def _associative(a_BTD, b_BTD, h_BD, pos_BT):
    """All h [B, T, D] by an associative scan: log T steps."""
    A_BTD, h_BTD = jax.lax.associative_scan(combine, _elements(a_BTD, b_BTD, pos_BT), axis=1)
    return A_BTD * h_BD[:, None] + h_BTD


def prepare(
    affine: Callable, x_BTD: jax.Array, gate_BTD: jax.Array, state: LinearState | None, pos: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array, LinearState]:
    """(a_BTD, b_BTD, pos_BT, state) of a call, with inputs set to zero at padding."""
    chex.assert_rank(x_BTD, 3)
    chex.assert_equal_shape([x_BTD, gate_BTD])
    pos_BT = _time.positions(pos, x_BTD)
    chex.assert_shape(pos_BT, x_BTD.shape[:2])
    acc = _time.accumulation_dtype(x_BTD, gate_BTD)
    state = init_state(x_BTD.shape[0], x_BTD.shape[2], acc) if state is None else state
    chex.assert_shape(state.h_BD, (x_BTD.shape[0], x_BTD.shape[2]))
    a_BTD, b_BTD = affine(*(x.astype(acc) for x in _time.clean(pos_BT, x_BTD, gate_BTD)))
    return a_BTD, b_BTD, pos_BT, state


def _run(scan: Callable, affine: Callable, x_BTD, gate_BTD, state, pos):
    a_BTD, b_BTD, pos_BT, state = prepare(affine, x_BTD, gate_BTD, state, pos)
    if x_BTD.shape[1] == 0:
        return x_BTD, state
    h_BTD = scan(a_BTD, b_BTD, state.h_BD, pos_BT)
    return _time.select(_time.valid(pos_BT), h_BTD).astype(x_BTD.dtype), LinearState(h_BTD[:, -1])


def recurrent(
    affine: Callable, x_BTD: jax.Array, gate_BTD: jax.Array, state: LinearState | None, pos: jax.Array | None
) -> tuple[jax.Array, LinearState]:
    """One token after another."""
    return _run(_steps, affine, x_BTD, gate_BTD, state, pos)


def parallel(
    affine: Callable, x_BTD: jax.Array, gate_BTD: jax.Array, state: LinearState | None, pos: jax.Array | None
) -> tuple[jax.Array, LinearState]:
    """`jax.lax.associative_scan` over time: log T steps."""
    return _run(_associative, affine, x_BTD, gate_BTD, state, pos)


def chunkwise(
    affine: Callable, x_BTD: jax.Array, gate_BTD: jax.Array, state: LinearState | None, pos: jax.Array | None, chunk: int
) -> tuple[jax.Array, LinearState]:
    """An associative scan inside each chunk; the state is carried between chunks."""
    _, _, pos_BT, state = prepare(affine, x_BTD, gate_BTD, state, pos)
    if x_BTD.shape[1] == 0:
        return x_BTD, state
    return _time.scan_chunks(functools.partial(parallel, affine), state, (x_BTD, gate_BTD), pos_BT, chunk)


def summary(affine: Callable, x_BTD: jax.Array, gate_BTD: jax.Array, pos: jax.Array | None) -> Summary:
    """Product of all a_t, and the state after the segment starting from zero. T >= 1."""
    elements = _elements(*prepare(affine, x_BTD, gate_BTD, None, pos)[:3])
    return jax.tree.map(lambda x: x[:, -1], jax.lax.associative_scan(combine, elements, axis=1))
