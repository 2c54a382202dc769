"""Recurrences that are affine channel by channel, h_t = a_t h_{t-1} + b_t: what minLSTM and RG-LRU share.

An op brings a_t and b_t [B, T, D] in the accumulation dtype; resets and padding are added here: a document's first token
has a = 0, padding a = 1 and b = 0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxseq.ops import _time


class LinearState(NamedTuple):
    h_BD: jax.Array  # in the accumulation dtype


class Summary(NamedTuple):
    """What a stretch of input does to any state: h -> A h + h'."""

    A_BD: jax.Array  # product of the a; 0 if a document starts in the stretch
    h_BD: jax.Array  # the state that the stretch leaves behind when it meets zero


def init_state(batch: int, width: int, dtype=jnp.float32) -> LinearState:
    return LinearState(jnp.zeros((batch, width), _time.accumulation_dtype(jnp.zeros((), dtype))))


def combine(first: Summary, second: Summary) -> Summary:
    """The summary of two stretches, one after the other; associative."""
    return Summary(second.A_BD * first.A_BD, second.A_BD * first.h_BD + second.h_BD)


def apply(summary: Summary, state: LinearState) -> LinearState:
    return LinearState(summary.A_BD * state.h_BD + summary.h_BD)


def _elements(a_BTD, b_BTD, pos_BT) -> Summary:
    """Every token as a summary of one."""
    a_BTD = jnp.where(_time.expand(_time.valid(pos_BT), a_BTD), _time.select(pos_BT != _time.START, a_BTD), 1)
    return Summary(a_BTD, _time.select(_time.valid(pos_BT), b_BTD))


def steps(a_BTD, b_BTD, h_BD, pos_BT):
    """All h [B, T, D], one token after another."""
    a_BTD, b_BTD = _elements(a_BTD, b_BTD, pos_BT)

    def step(h_BD, inputs):
        a_BD, b_BD = inputs
        h_BD = a_BD * h_BD + b_BD
        return h_BD, h_BD

    _, h_TBD = jax.lax.scan(step, h_BD, (jnp.moveaxis(a_BTD, 1, 0), jnp.moveaxis(b_BTD, 1, 0)))
    return jnp.moveaxis(h_TBD, 0, 1)


def associative(a_BTD, b_BTD, h_BD, pos_BT):
    """All h [B, T, D] by an associative scan: log T steps."""
    A_BTD, h_BTD = jax.lax.associative_scan(combine, _elements(a_BTD, b_BTD, pos_BT), axis=1)
    return A_BTD * h_BD[:, None] + h_BTD


def summary(a_BTD, b_BTD, pos_BT) -> Summary:
    """The summary of the whole stretch: its tokens' joined pairwise."""
    total = jax.lax.associative_scan(combine, _elements(a_BTD, b_BTD, pos_BT), axis=1)
    return jax.tree.map(lambda x: x[:, -1], total)
