"""The three kernels of `attention_tpu`; a grid step processes one block of I queries and one block of J keys.

`first` and `last` (scalar memory) are the range of inner blocks that an outer block needs. Vectors are stored as rows, along
lanes; those needed as columns are transposed once per outer block. `stats` holds L and D, `span` holds low and high.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

Ref = Any  # a block of an array in memory, read and written by Ref[...]; JAX has no public type for it


def _outer_block():
    """Index of the accumulating block in the flat arrays `first` and `last` [B * blocks]."""
    return pl.program_id(0) * pl.num_programs(2) + pl.program_id(2)


def _dot(a, b, acc, axes=(1, 0)):
    # Products of bfloat16 are exact in float32, and the compiler rejects a higher precision for them.
    precision = jax.lax.Precision.DEFAULT if a.dtype == jnp.bfloat16 else None
    return jax.lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())), precision, preferred_element_type=acc)


def _scores(rows, columns, low, high, number, scale, acc):
    """Scaled products of two blocks, -inf where the query does not see the key.

    [I, J] with `low` and `high` [I, 1] and `number` [1, J]; or [J, I] with `low` and `high` [1, I] and `number` [J, 1].
    """
    return jnp.where((low <= number) & (number <= high), _dot(rows, columns, acc, (1, 1)) * scale, -jnp.inf)


def forward(
    first: Ref, last: Ref, span_2I: Ref, number_1J: Ref, q_IK: Ref, k_JK: Ref, v_JV: Ref, y_IV: Ref, lse_1I: Ref,
    span_I2: Ref, top_I1: Ref, sum_I1: Ref, acc_IV: Ref, *, scale: float,
) -> None:  # fmt: skip
    """y and L of a block of queries: the softmax runs online over the blocks of keys."""
    block, step = _outer_block(), pl.program_id(3)
    acc = acc_IV.dtype

    @pl.when(step == 0)
    def _():
        span_I2[...] = span_2I[...].T
        top_I1[...] = jnp.full_like(top_I1, -jnp.inf)
        sum_I1[...] = jnp.zeros_like(sum_I1)
        acc_IV[...] = jnp.zeros_like(acc_IV)

    @pl.when(first[block] + step <= last[block])
    def _():
        s_IJ = _scores(q_IK[...], k_JK[...], span_I2[:, :1], span_I2[:, 1:], number_1J[...], scale, acc)
        top = jnp.maximum(top_I1[...], jnp.max(s_IJ, axis=1, keepdims=True))
        shift = jnp.where(top == -jnp.inf, 0, top)  # no visible key yet: exp(-inf - 0) = 0, not NaN
        p_IJ, keep = jnp.exp(s_IJ - shift), jnp.exp(top_I1[...] - shift)
        top_I1[...] = top
        sum_I1[...] = keep * sum_I1[...] + jnp.sum(p_IJ, axis=1, keepdims=True)
        acc_IV[...] = keep * acc_IV[...] + _dot(p_IJ.astype(v_JV.dtype), v_JV[...], acc)

    @pl.when(step == pl.num_programs(3) - 1)
    def _():
        seen = sum_I1[...] > 0
        total = jnp.where(seen, sum_I1[...], 1)
        y_IV[...] = (acc_IV[...] / total).astype(y_IV.dtype)
        lse_1I[...] = (jnp.where(seen, top_I1[...], 0) + jnp.log(total)).T


def dq(
    first: Ref, last: Ref, span_2I: Ref, number_1J: Ref, q_IK: Ref, k_JK: Ref, v_JV: Ref, dy_IV: Ref, stats_2I: Ref,
    dq_IK: Ref, span_I2: Ref, stats_I2: Ref, acc_IK: Ref, *, scale: float,
) -> None:  # fmt: skip
    """dq of a block of queries, summed over the blocks of keys."""
    block, step = _outer_block(), pl.program_id(3)
    acc = acc_IK.dtype

    @pl.when(step == 0)
    def _():
        span_I2[...] = span_2I[...].T
        stats_I2[...] = stats_2I[...].T
        acc_IK[...] = jnp.zeros_like(acc_IK)

    @pl.when(first[block] + step <= last[block])
    def _():
        s_IJ = _scores(q_IK[...], k_JK[...], span_I2[:, :1], span_I2[:, 1:], number_1J[...], scale, acc)
        p_IJ = jnp.exp(s_IJ - stats_I2[:, :1])
        ds_IJ = p_IJ * (_dot(dy_IV[...], v_JV[...], acc, (1, 1)) - stats_I2[:, 1:])
        acc_IK[...] += _dot(ds_IJ.astype(k_JK.dtype), k_JK[...], acc)

    @pl.when(step == pl.num_programs(3) - 1)
    def _():
        dq_IK[...] = (acc_IK[...] * scale).astype(dq_IK.dtype)


def dkv(
    first: Ref, last: Ref, span_2I: Ref, number_1J: Ref, q_IK: Ref, k_JK: Ref, v_JV: Ref, dy_IV: Ref, stats_2I: Ref,
    dk_JK: Ref, dv_JV: Ref, number_J1: Ref, acc_JK: Ref, acc_JV: Ref, *, scale: float,
) -> None:  # fmt: skip
    """dk and dv of a block of keys, summed over the query heads of its group and their blocks of queries."""
    block, head, step = _outer_block(), pl.program_id(3), pl.program_id(4)
    acc = acc_JK.dtype

    @pl.when((head == 0) & (step == 0))
    def _():
        number_J1[...] = number_1J[...].T
        acc_JK[...] = jnp.zeros_like(acc_JK)
        acc_JV[...] = jnp.zeros_like(acc_JV)

    @pl.when(first[block] + step <= last[block])
    def _():
        s_JI = _scores(k_JK[...], q_IK[...], span_2I[:1], span_2I[1:], number_J1[...], scale, acc)
        p_JI = jnp.exp(s_JI - stats_2I[:1])
        ds_JI = p_JI * (_dot(v_JV[...], dy_IV[...], acc, (1, 1)) - stats_2I[1:])
        acc_JV[...] += _dot(p_JI.astype(dy_IV.dtype), dy_IV[...], acc)
        acc_JK[...] += _dot(ds_JI.astype(q_IK.dtype), q_IK[...], acc)

    @pl.when((head == pl.num_programs(3) - 1) & (step == pl.num_programs(4) - 1))
    def _():
        dk_JK[...] = (acc_JK[...] * scale).astype(dk_JK.dtype)
        dv_JV[...] = acc_JV[...].astype(dv_JV.dtype)
