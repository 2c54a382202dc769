"""Flash attention for TPU: the form `pallas` of `jaxseq.ops.attention`, forward and backward, tested by the same laws.

It compiles for v5e and is tested in Pallas's interpret mode on the CPU. It has not been timed on a TPU, so it is opt-in.

For query t and its visible keys s, with L the log-sum-exp of the scores (FlashAttention-2, Dao 2023, arXiv:2307.08691,
algorithms 1 and 2):

    s_ts = scale q_t . k_s,   L_t = log sum_s exp(s_ts),   p_ts = exp(s_ts - L_t),   y_t = sum_s p_ts v_s
    D_t = dy_t . y_t - dL_t,  ds_ts = p_ts (dy_t . v_s - D_t)
    dq_t = scale sum_s ds_ts k_s,   dk_s = scale sum_t ds_ts q_t,   dv_s = sum_t p_ts dy_t

The forward pass keeps a running maximum, sum and output for a block of I queries while it loops over blocks of J keys, and saves
only y and L. The backward pass recomputes the scores twice: once for dq, and once, with keys as rows, for dk and dv, which are
also summed over the H / G query heads that share a key head. No [T, S] array exists outside a block.

The visible keys of a query form an interval of numbers, see `jaxseq.ops._attend`. The minima and maxima of the numbers over
blocks determine, before the call, which blocks of keys a block of queries needs; all others are neither fetched nor computed.

Shapes: q [B, T, H, K], k [B, T, G, K], v [B, T, G, V], state [B, S, G, ...], in bfloat16 or float32. Inside, the head axis comes
before time, and S counts the slots of the state and the tokens of the call. Scores, L, D and sums are float32; p and ds are
rounded to the inputs' dtype for the products with v, k, q and dy. On a TPU `block_q` and `block_k` must be multiples of 128. The
partitioner cannot shard a Pallas call: on several devices `jaxseq.forms` runs it on each device's rows and heads.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxseq.errors import UserError
from jaxseq.kernels import _attention_tpu_kernels as kernels
from jaxseq.ops import _time, attention
from jaxseq.ops._attend import NEVER, needed_by_row

LANES = 128


class _Plan(NamedTuple):
    """Static parameters of a call."""

    scale: float
    block_q: int
    block_k: int
    key_steps: int  # maximum number of blocks of keys for a block of queries
    query_steps: int  # maximum number of blocks of queries for a block of keys
    pairs: int  # estimated number of visible (query, key) pairs per head, for the compiler's cost model


def pallas(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGV: jax.Array, *, state: attention.AttentionState | None = None,
    pos: jax.Array | None = None, window: int | None = None, scale: float | None = None, cap: float | None = None,
    sink_H: jax.Array | None = None, block_q: int = 512, block_k: int = 512,
) -> tuple[jax.Array, attention.AttentionState]:  # fmt: skip
    """Same function as `attention.parallel`, in blocks of `block_q` queries x `block_k` keys (multiples of 128 on a TPU).

    Raises UserError if `cap` is set: the kernel has no such term.
    """
    if cap is not None:
        raise UserError(f"attention's Pallas kernel cannot cap its scores (cap={cap:g}); use the form chunkwise")
    scale, q_BTHK, k_BTGK, v_BTGV, pos_BT = attention._prepare(q_BTHK, k_BTGK, v_BTGV, state, pos, window, scale)
    time = q_BTHK.shape[1]
    if time == 0:
        return attention.parallel(q_BTHK, k_BTGK, v_BTGV, state=state, window=window)
    span, keys = attention.gather(state, k_BTGK, v_BTGV, pos_BT, window)
    slots = keys.number_BS.shape[1] - time
    block_q, block_k = (min(b, _round_up(n, LANES)) for b, n in ((block_q, time), (block_k, slots + time)))
    span_B2T = jnp.stack([_pad(span.low_BT, block_q, NEVER), _pad(span.high_BT, block_q, -1)], axis=1)
    number_B1S = _pad(keys.number_BS, block_k, -1)[:, None]
    dtype = jnp.result_type(q_BTHK, k_BTGK, v_BTGV)
    blocks = (jnp.swapaxes(q_BTHK, 1, 2), block_q), (keys.k_BGSK, block_k), (keys.v_BGSV, block_k)
    qkv = tuple(_pad(x_BHTK.astype(dtype), block, axis=2) for x_BHTK, block in blocks)
    plan = _plan(scale, window, slots, block_q, block_k, span_B2T.shape[2], number_B1S.shape[2])
    y_BHTV, lse_BH1T = _attend(plan, *qkv, span_B2T, number_B1S)
    y_BTHV, lse_BTH = jnp.moveaxis(y_BHTV, 1, 2)[:, :time], jnp.moveaxis(lse_BH1T[:, :, 0], 1, 2)[:, :time]
    before = attention._empty(k_BTGK, v_BTGV, attention._size(None, window, time)) if state is None else state
    y_BTHV = attention.finish(y_BTHV, lse_BTH, sink_H, pos_BT, q_BTHK.dtype)
    return y_BTHV, attention.next_state(before, k_BTGK, v_BTGV, pos_BT)


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _pad(x: jax.Array, block: int, fill=0, axis: int = 1):
    """Pad `axis` to a multiple of `block` with `fill`."""
    widths = [(0, -n % block if i == axis else 0) for i, n in enumerate(x.shape)]
    return jnp.pad(x, widths, constant_values=fill)


def _plan(scale, window, slots, block_q, block_k, queries, keys) -> _Plan:
    """The static parameters. With a window, the number of blocks that a block can need does not depend on T.

    A block that sees the state is within one window of the start of the call, so its keys are the slots, that window and the
    block itself. Padding is a suffix, so the index of a token in the row is its number minus the count.
    """
    key_steps, query_steps = keys // block_k, queries // block_q
    if window is not None:
        key_steps = min(key_steps, (slots + window + block_q) // block_k + 2)
        query_steps = min(query_steps, (window + block_k) // block_q + 2)
    pairs = queries * min(window or keys, slots + queries // 2)
    return _Plan(float(scale), block_q, block_k, key_steps, query_steps, pairs)


def _ranges(plan, span_B2T, number_B1S):
    """(first, last) block of keys for each block of queries [B * T / I], then of queries for each block of keys."""
    blocks = (span_B2T[:, 0], plan.block_q), (span_B2T[:, 1], plan.block_q), (number_B1S, plan.block_k)
    need_BZU = needed_by_row(*(x.reshape(x.shape[0], -1, block) for x, block in blocks))

    def ends(need_BZU):
        last = need_BZU.shape[2] - 1
        some_BZ = jnp.any(need_BZU, axis=2)
        first_BZ = jnp.where(some_BZ, jnp.argmax(need_BZU, axis=2), 1)  # none needed: 1 to 0 is empty, and block 0 exists
        last_BZ = jnp.where(some_BZ, last - jnp.argmax(need_BZU[:, :, ::-1], axis=2), 0)
        return first_BZ.astype(jnp.int32).ravel(), last_BZ.astype(jnp.int32).ravel()

    return ends(need_BZU), ends(jnp.swapaxes(need_BZU, 1, 2))


def _attend_fwd(plan, *arguments):
    y_BHTV, lse_BH1T = _forward(plan, *arguments)
    return (y_BHTV, lse_BH1T), (*arguments, y_BHTV, lse_BH1T)


def _attend_bwd(plan, saved, cotangents):
    dy_BHTV, dlse_BH1T = cotangents
    q_BHTK, k_BGSK, v_BGSV, span_B2T, number_B1S, y_BHTV, lse_BH1T = saved
    inner_BH1T = jnp.einsum("bhtv,bhtv->bht", dy_BHTV, y_BHTV, preferred_element_type=lse_BH1T.dtype)[:, :, None]
    stats_BH2T = jnp.concatenate([lse_BH1T, inner_BH1T - dlse_BH1T], axis=2)
    inputs = span_B2T, number_B1S, q_BHTK, k_BGSK, v_BGSV
    return *_backward(plan, inputs, dy_BHTV, stats_BH2T), None, None


def _specs(plan: _Plan, key_size, value_size, queries_at, keys_at):
    """Block specs of (span, number, q, k, v, y, statistics); `queries_at` and `keys_at` map grid indices to block indices."""

    def heads(block, size, at):
        return pl.BlockSpec((None, None, block, size), lambda *ids: (*at(*ids), 0))

    def of_batch(rows, block, at):
        return pl.BlockSpec((None, rows, block), lambda *ids: (at(*ids)[0], 0, at(*ids)[2]))

    def statistics(rows):
        return pl.BlockSpec((None, None, rows, plan.block_q), lambda *ids: (*queries_at(*ids)[:2], 0, queries_at(*ids)[2]))

    q, y = heads(plan.block_q, key_size, queries_at), heads(plan.block_q, value_size, queries_at)
    k, v = heads(plan.block_k, key_size, keys_at), heads(plan.block_k, value_size, keys_at)
    return of_batch(2, plan.block_q, queries_at), of_batch(1, plan.block_k, keys_at), q, k, v, y, statistics


def _needed(blocks, b, x, step, first, last):
    """The `step`-th block that block x of row b needs; after the last one the index stays the same, so nothing is fetched."""
    return jnp.minimum(first[b * blocks + x] + step, last[b * blocks + x])


def _query_grid(plan, q_BHTK, k_BGSK, v_BGSV):
    """(grid (B, H, T / I, steps), block specs): loops over the blocks of keys of each block of queries."""
    batch, heads, queries, key_size = q_BHTK.shape
    group, blocks = heads // k_BGSK.shape[1], queries // plan.block_q

    def keys_at(b, h, i, step, first, last):
        return b, h // group, _needed(blocks, b, i, step, first, last)

    specs = _specs(plan, key_size, v_BGSV.shape[3], lambda b, h, i, *_: (b, h, i), keys_at)
    return (batch, heads, blocks, plan.key_steps), specs


def _key_grid(plan, q_BHTK, k_BGSK, v_BGSV):
    """(grid (B, G, S / J, H / G, steps), block specs): loops over heads and blocks of queries for each block of keys."""
    batch, kv_heads, keys, key_size = k_BGSK.shape
    group, blocks = q_BHTK.shape[1] // kv_heads, keys // plan.block_k

    def queries_at(b, g, j, r, step, first, last):
        return b, g * group + r, _needed(blocks, b, j, step, first, last)

    specs = _specs(plan, key_size, v_BGSV.shape[3], queries_at, lambda b, g, j, *_: (b, g, j))
    return (batch, kv_heads, blocks, group, plan.query_steps), specs


def _call(kernel, plan, ranges, grid, specs, inputs, outputs, scratch, products: int):
    """Run one kernel over a grid: its three outer dimensions are parallel, the inner ones accumulate in scratch memory.

    `specs`: block specs of inputs, then outputs; `products`: multiply-adds per pair of a query and a key.
    """
    pairs = plan.pairs * inputs[2].shape[0] * inputs[2].shape[1]
    out_shape = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in outputs]
    moved = sum(math.prod(x.shape) * x.dtype.itemsize for x in (*inputs, *out_shape))
    return pl.pallas_call(
        functools.partial(kernel, scale=plan.scale),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=grid,
            in_specs=specs[: len(inputs)],
            out_specs=specs[len(inputs) :],
            scratch_shapes=[pltpu.VMEM(shape, dtype) for shape, dtype in scratch],
        ),
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 3 + ("arbitrary",) * (len(grid) - 3)),
        cost_estimate=pl.CostEstimate(flops=2 * products * pairs, transcendentals=pairs, bytes_accessed=moved),
        name=f"attention_{kernel.__name__}",
    )(*ranges, *inputs)


def _forward(plan, q_BHTK, k_BGSK, v_BGSV, span_B2T, number_B1S):
    """y [B, H, T, V] and the log-sum-exp L [B, H, 1, T]; both zero for a query without visible keys."""
    acc, size = _time.accumulation_dtype(q_BHTK), plan.block_q
    batch, heads, time, key_size = q_BHTK.shape
    value_size = v_BGSV.shape[3]
    ranges, _ = _ranges(plan, span_B2T, number_B1S)
    grid, (*specs, y, statistics) = _query_grid(plan, q_BHTK, k_BGSK, v_BGSV)
    inputs = span_B2T, number_B1S, q_BHTK, k_BGSK, v_BGSV
    outputs = ((batch, heads, time, value_size), q_BHTK.dtype), ((batch, heads, 1, time), acc)
    scratch = ((size, 2), jnp.int32), ((size, 1), acc), ((size, 1), acc), ((size, value_size), acc)
    specs = [*specs, y, statistics(1)]
    return _call(kernels.forward, plan, ranges, grid, specs, inputs, outputs, scratch, key_size + value_size)


_attend = jax.custom_vjp(_forward, nondiff_argnums=(0,))
_attend.defvjp(_attend_fwd, _attend_bwd)


def _backward(plan, inputs, dy_BHTV, stats_BH2T):
    """dq, dk and dv, in the shapes and dtypes of q, k and v; `stats` holds L and D."""
    span_B2T, number_B1S, *qkv = inputs
    q_BHTK, k_BGSK, v_BGSV = qkv
    acc, key_size, value_size = stats_BH2T.dtype, q_BHTK.shape[3], v_BGSV.shape[3]
    ranges_q, ranges_k = _ranges(plan, span_B2T, number_B1S)
    inputs = *inputs, dy_BHTV, stats_BH2T

    grid, (*specs, y, statistics) = _query_grid(plan, *qkv)
    specs = [*specs, y, statistics(2), specs[2]]
    scratch = ((plan.block_q, 2), jnp.int32), ((plan.block_q, 2), acc), ((plan.block_q, key_size), acc)
    outputs, products = [(q_BHTK.shape, q_BHTK.dtype)], 2 * key_size + value_size
    (dq_BHTK,) = _call(kernels.dq, plan, ranges_q, grid, specs, inputs, outputs, scratch, products)

    grid, (*specs, y, statistics) = _key_grid(plan, *qkv)
    specs = [*specs, y, statistics(2), *specs[3:]]
    scratch = ((plan.block_k, 1), jnp.int32), ((plan.block_k, key_size), acc), ((plan.block_k, value_size), acc)
    outputs, products = [(x.shape, x.dtype) for x in (k_BGSK, v_BGSV)], 2 * (key_size + value_size)
    dk_BGSK, dv_BGSV = _call(kernels.dkv, plan, ranges_k, grid, specs, inputs, outputs, scratch, products)
    return dq_BHTK, dk_BGSK, dv_BGSV
