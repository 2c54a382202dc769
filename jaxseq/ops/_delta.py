"""The delta rule and its variants: each token writes the difference between its value and what its key reads from the state.

    z_t = v_t - e_t D_t S_{t-1}          the value, minus what the key e_t reads from the decayed state
    S_t = D_t S_{t-1} + k_t^T z_t        S [K, V] per head
    y_t = q_t S_t

D_t = e^{log_w_t} with log_w <= 0 is one number per head or one per key channel. DeltaNet has e = beta k and beta v instead of v
(Yang et al. 2024, arXiv:2406.06484). gated_delta_rule, kda and gdn2 follow this rule; wkv7 reads before the decay and writes a
second key-value pair.

A chunk is computed in stages, one function each, so that a kernel can be checked stage by stage:

    decay sums        `_decay.decays`, `_decay.head_decays`
    products of keys  `_decay.products`: the contribution of each write to each later read
    solve             `solve`: (I - A)^-1 by recursive halving; then z_t = own_t + from_state_t S for the state S before the chunk
    state pass        `after` for one chunk, or `summary` and `combine` for many
    output            `outputs`

All chunks of a span are solved at once; only the state pass is sequential over chunks. An op defines `prepare`, `step` and
`solved`, from which `forms` builds its forms. Everything is computed in the accumulation dtype.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq.ops import _decay, _time
from jaxseq.ops._example import Example, repeated, stresses

CHUNK = 64  # tokens per triangular system, the default of `forms`
SPAN = 4  # chunks that the chunkwise form solves at once; memory is linear in it


class DeltaState(NamedTuple):
    """Matrix state S [B, H, K, V] of a delta rule."""

    S_BHKV: jax.Array  # in the accumulation dtype


Outcome = tuple[jax.Array, DeltaState]  # (y, the next state)


class Summary(NamedTuple):
    """Effect of a segment on the incoming state: S -> A S + S'."""

    A_BHKK: jax.Array  # zero if a document starts in the segment
    S_BHKV: jax.Array


class Moves(NamedTuple):
    """Effect of a chunk on the state S before it."""

    own_BTHV: jax.Array  # z_t = own_t + from_state_t S
    from_state_BTHK: jax.Array
    k_BTHK: jax.Array  # keys of the writes, decayed to the end of the chunk
    decay_BHK: jax.Array  # decay of S over the chunk (K may be 1); zero if a document starts in it
    S_BHKV: jax.Array | None = None  # contribution of additional writes (wkv7) to the next state


class Chunk(NamedTuple):
    """A chunk, solved as a function of the state before it."""

    moves: Moves
    scores_BHTS: jax.Array  # products of queries and keys of writes, decayed
    q_BTHK: jax.Array  # queries, decayed from the start of the chunk
    y_BTHV: jax.Array | None = None  # contribution of additional writes (wkv7) to the outputs


def init_state(batch: int, heads: int, key_size: int, value_size: int, dtype: DTypeLike = jnp.float32) -> DeltaState:
    """The empty state, in the accumulation dtype for inputs of `dtype`."""
    return DeltaState(jnp.zeros((batch, heads, key_size, value_size), _time.accumulation_dtype(jnp.zeros((), dtype))))


def _sandwich(X_BHTT, R_BHTT):
    """X R X at full precision; an accelerator's default, bfloat16 products, would make the inverse inaccurate."""
    return jnp.matmul(jnp.matmul(X_BHTT, R_BHTT, precision="highest"), X_BHTT, precision="highest")


@jax.custom_jvp
def unit_triangular_inverse(A_BHTT: jax.Array) -> jax.Array:
    """(I - A)^-1 for strictly lower triangular A, by recursive halving: [[P, 0], [-R, Q]]^-1 = [[P^-1, 0], [Q^-1 R P^-1, Q^-1]].

    All blocks of one size are inverted at once. With X the inverse of the diagonal blocks and R the blocks that couple pairs of
    them, the next X is X + X R X: log2 T steps of two matrix products. The product (I + A)(I + A^2)(I + A^4) ... costs the same,
    but with repeated keys its terms grow like binomial coefficients and cancel.
    """
    time = A_BHTT.shape[-1]
    inverse, size, index_T = jnp.eye(time, dtype=A_BHTT.dtype) + jnp.zeros_like(A_BHTT), 1, jnp.arange(time)
    while size < time:
        block_T = index_T // size
        joins_TT = (block_T[:, None] == block_T + 1) & (block_T[:, None] % 2 == 1)
        joint_BHTT = jnp.where(joins_TT, A_BHTT, 0)
        inverse += joint_BHTT if size == 1 else _sandwich(inverse, joint_BHTT)
        size *= 2
    return inverse


@unit_triangular_inverse.defjvp
def _(primals, tangents):
    inverse_BHTT = unit_triangular_inverse(*primals)
    return inverse_BHTT, _sandwich(inverse_BHTT, tangents[0])


def solve(A_BHTS: jax.Array, v_BTHV: jax.Array, read_BTHK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(own, from_state) of z_t = own_t + from_state_t S, the solution of z = A z + v + read S; A is strictly lower triangular."""
    inverse_BHTS = unit_triangular_inverse(A_BHTS)
    own_BTHV, from_state_BTHK = (jnp.einsum("bhts,bshk->bthk", inverse_BHTS, x) for x in (v_BTHV, read_BTHK))
    return own_BTHV, from_state_BTHK


def solved(
    q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, e_BTHK: jax.Array, log_w: jax.Array, pos_BT: jax.Array
) -> Chunk:
    """Solve a chunk of the rule above. log_w: [B, T, H] or [B, T, H, K]."""
    seg_BT = _time.segments(pos_BT)
    decays = (_decay.head_decays if log_w.ndim == 3 else _decay.decays)(log_w, pos_BT, v_BTHV.dtype)
    earlier_BTS = _decay.before(seg_BT)
    mask_BTS = earlier_BTS | jnp.eye(seg_BT.shape[1], dtype=bool)
    reads = jnp.stack([-e_BTHK, q_BTHK])
    A_BHTS, scores_BHTS = jax.vmap(lambda x: _decay.products(x, k_BTHK, decays, mask_BTS))(reads)
    A_BHTS = jnp.where(earlier_BTS[:, None], A_BHTS, 0)
    in_BTHK = _time.select(seg_BT == 0, decays.upto_BTHK)
    out_BTHK = _time.select(_time.last_segment(pos_BT), decays.after_BTHK)
    decay_BHK = _time.select(_time.continues(pos_BT), decays.upto_BTHK[:, -1])
    moves = Moves(*solve(A_BHTS, v_BTHV, -e_BTHK * in_BTHK), k_BTHK * out_BTHK, decay_BHK)
    return Chunk(moves, scores_BHTS, q_BTHK * in_BTHK)


def _written(moves: Moves, S_BHKV):
    """z [B, T, H, V] for the state S before the chunk."""
    return moves.own_BTHV + jnp.einsum("bthk,bhkv->bthv", moves.from_state_BTHK, S_BHKV)


def after(moves: Moves, S_BHKV: jax.Array) -> jax.Array:
    """The state after the chunk, for the state S before it."""
    added_BHKV = jnp.einsum("bthk,bthv->bhkv", moves.k_BTHK, _written(moves, S_BHKV))
    added_BHKV = added_BHKV if moves.S_BHKV is None else added_BHKV + moves.S_BHKV
    return moves.decay_BHK[..., None] * S_BHKV + added_BHKV


def outputs(chunk: Chunk, S_BHKV: jax.Array) -> jax.Array:
    """y [B, T, H, V] of the chunk, for the state S before it."""
    y_BTHV = jnp.einsum("bhts,bshv->bthv", chunk.scores_BHTS, _written(chunk.moves, S_BHKV))
    y_BTHV += jnp.einsum("bthk,bhkv->bthv", chunk.q_BTHK, S_BHKV)
    return y_BTHV if chunk.y_BTHV is None else y_BTHV + chunk.y_BTHV


def summarise(moves: Moves) -> Summary:
    A_BHKK = jnp.einsum("bthk,bthj->bhkj", moves.k_BTHK, moves.from_state_BTHK)
    A_BHKK += moves.decay_BHK[..., None] * jnp.eye(A_BHKK.shape[-1], dtype=A_BHKK.dtype)
    return Summary(A_BHKK, after(moves, jnp.zeros_like(moves.own_BTHV, shape=_state_shape(moves))))


def _state_shape(moves: Moves) -> tuple[int, ...]:
    batch, _, heads, key_size = moves.k_BTHK.shape
    return batch, heads, key_size, moves.own_BTHV.shape[3]


def combine(first: Summary, second: Summary) -> Summary:
    """The summary of two segments, one after the other; associative."""
    return Summary(second.A_BHKK @ first.A_BHKK, second.A_BHKK @ first.S_BHKV + second.S_BHKV)


def apply(summary: Summary, state: DeltaState) -> DeltaState:
    """The state after a segment with this summary, for the state before it."""
    return DeltaState(summary.A_BHKK @ state.S_BHKV + summary.S_BHKV)


def by_scan(moves: Moves, state: DeltaState) -> tuple[jax.Array, DeltaState]:
    """(state before each chunk [Z, ...], final state), one chunk after another."""
    S_BHKV, front_ZBHKV = jax.lax.scan(lambda S, moves: (after(moves, S), S), state.S_BHKV, moves)
    return front_ZBHKV, DeltaState(S_BHKV)


def by_summaries(moves: Moves, state: DeltaState) -> tuple[jax.Array, DeltaState]:
    """Same as `by_scan`, by an associative scan over [K, K] matrices."""
    front, state = _decay.chunk_parallel(jax.vmap(summarise)(moves), combine, state, apply)
    return front.S_BHKV, state


def step(
    state: DeltaState, q_BHK: jax.Array, k_BHK: jax.Array, v_BHV: jax.Array, e_BHK: jax.Array, log_w: jax.Array
) -> tuple[DeltaState, jax.Array]:
    """The rule above for one token: (next state, y_t)."""
    S_BHKV = jnp.exp(log_w)[(...,) + (None,) * (4 - log_w.ndim)] * state.S_BHKV
    z_BHV = v_BHV - jnp.einsum("bhk,bhkv->bhv", e_BHK, S_BHKV)
    S_BHKV += k_BHK[..., None] * z_BHV[..., None, :]
    return DeltaState(S_BHKV), jnp.einsum("bhk,bhkv->bhv", q_BHK, S_BHKV)


def spread(q_BTGK: jax.Array, k_BTGK: jax.Array, v_BTHV: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(q, k, v) in the accumulation dtype, with each of the G heads of q and k repeated for H / G heads of v."""
    chex.assert_rank([q_BTGK, v_BTHV], 4)
    chex.assert_equal_shape([q_BTGK, k_BTGK])
    chex.assert_equal_shape_prefix([q_BTGK, v_BTHV], 2)
    heads, groups = v_BTHV.shape[2], q_BTGK.shape[2]
    chex.assert_is_divisible(heads, groups)
    acc = _time.accumulation_dtype(q_BTGK, v_BTHV)
    repeat = (lambda x: x) if heads == groups else (lambda x: jnp.repeat(x, heads // groups, axis=2))
    return repeat(q_BTGK.astype(acc)), repeat(k_BTGK.astype(acc)), v_BTHV.astype(acc)


def forms(
    prepare: Callable, step: Callable = step, solved: Callable = solved, size: int = CHUNK
) -> tuple[dict[str, Callable], Callable]:
    """(FORMS, `summary`) of an op. `prepare(*xs)` returns the arguments of `step` and `solved`, in the accumulation dtype: first
    q [B, T, H, K], k and v. size: tokens of a chunk."""

    def enter(xs, state, pos):
        pos_BT = _time.positions(pos, xs[0])
        chex.assert_shape(pos_BT, xs[0].shape[:2])
        arrays = prepare(*_time.clean(pos_BT, *xs))
        (batch, _, heads, key_size), value_size = arrays[0].shape, arrays[2].shape[3]
        state = init_state(batch, heads, key_size, value_size, arrays[2].dtype) if state is None else state
        chex.assert_shape(state.S_BHKV, (batch, heads, key_size, value_size))
        return arrays, pos_BT, state

    def cut(arrays, pos_BT, chunk):
        pos_ZBC, *arrays = _time.split_chunks(min(chunk, pos_BT.shape[1]), pos_BT, *arrays)
        return jax.vmap(solved)(*arrays, pos_ZBC)

    def run(fronts, chunk, *arrays, state, pos):
        """(outputs, final state), with all chunks solved at once; `fronts` is `by_scan` or `by_summaries`."""
        if pos.shape[1] <= chunk:
            only = solved(*arrays, pos)
            return outputs(only, state.S_BHKV), DeltaState(after(only.moves, state.S_BHKV))
        chunks = cut(arrays, pos, chunk)
        front_ZBHKV, state = fronts(chunks.moves, state)
        return _time.join_chunks(jax.vmap(outputs)(chunks, front_ZBHKV), pos.shape[1]), state

    def leave(y_BTHV, pos_BT, xs):
        return _time.select(_time.valid(pos_BT), y_BTHV).astype(xs[0].dtype)

    def recurrent(*xs: jax.Array, state: DeltaState | None = None, pos: jax.Array | None = None) -> Outcome:
        """One token after another."""
        arrays, pos_BT, before = enter(xs, state, pos)
        y_BTHV, after = _time.scan_time(step, before, arrays, pos_BT)
        return y_BTHV.astype(xs[0].dtype), after

    def parallel(*xs: jax.Array, state: DeltaState | None = None, pos: jax.Array | None = None) -> Outcome:
        """All chunks at once; their states are combined by an associative scan over [K, K] matrices."""
        arrays, pos_BT, before = enter(xs, state, pos)
        if pos_BT.shape[1] == 0:
            return arrays[2].astype(xs[0].dtype), before
        y_BTHV, after = run(by_summaries, size, *arrays, state=before, pos=pos_BT)
        return leave(y_BTHV, pos_BT, xs), after

    def chunkwise(*xs: jax.Array, state: DeltaState | None = None, pos: jax.Array | None = None, chunk: int = size) -> Outcome:
        """Matrix products inside each chunk, SPAN chunks at once; the state is carried between chunks. Memory is linear in T."""
        arrays, pos_BT, before = enter(xs, state, pos)
        if pos_BT.shape[1] == 0:
            return arrays[2].astype(xs[0].dtype), before
        chunks = -(-pos_BT.shape[1] // chunk)
        span = chunk * -(-chunks // -(-chunks // SPAN))  # spans of equal length, for little padding

        def form(*arrays, state, pos):
            return run(by_scan, chunk, *arrays, state=state, pos=pos)

        form = jax.checkpoint(form) if chunks > 1 else form  # also for a single span, because decays are larger than inputs
        y_BTHV, after = _time.scan_chunks(form, before, arrays, pos_BT, span, remat=False)
        return leave(y_BTHV, pos_BT, xs), after

    def summary(*xs: jax.Array, pos: jax.Array | None = None) -> Summary:
        """The `Summary` of the segment. T >= 1."""
        arrays, pos_BT, _ = enter(xs, None, pos)
        totals = jax.vmap(summarise)(cut(arrays, pos_BT, size).moves)
        return jax.tree.map(lambda x: x[-1], jax.lax.associative_scan(combine, totals))

    return {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}, summary


def example(recurrent: Callable, channels: tuple[int, ...], key: jax.Array, batch: int, time: int, dtype: DTypeLike) -> Example:
    """Example of an op on (q, k, v, log_w, beta), with log_w of shape [B, T, H, *channels]."""

    def inputs(key, time):
        keys = jax.random.split(key, 5)
        q_BTGK, k_BTGK = (jax.random.normal(k, (batch, time, 1, 4), dtype) for k in keys[:2])
        v_BTHV = jax.random.normal(keys[2], (batch, time, 2, 3), dtype)
        log_w = -jax.nn.softplus(jax.random.normal(keys[3], (batch, time, 2, *channels), dtype) - 3)
        k_BTGK /= jnp.linalg.norm(k_BTGK, axis=-1, keepdims=True)
        return q_BTGK, k_BTGK, v_BTHV, log_w, jax.nn.sigmoid(jax.random.normal(keys[4], (batch, time, 2), dtype))

    key_x, key_prefix = jax.random.split(key)
    return Example(inputs(key_x, time), {}, {}, recurrent(*inputs(key_prefix, 32))[1])


def stress(base: Example, key: jax.Array) -> dict[str, Example]:
    """All tokens have one key. beta = 0.9; "repeated": log_w = 0 and beta = 1; "large": log_w = -0.05 and beta = 1.9."""
    q, k, v, log_w, beta = base.xs
    (one,) = repeated(k)

    def of(log_w, rate):
        return base._replace(xs=(q, one, v, log_w, jnp.full_like(beta, rate)))

    replaced, overshot = of(0 * log_w, 1.0), of(jnp.full_like(log_w, -0.05), 1.9)
    return stresses(key, base, log_w.shape, lambda log_w: of(log_w, 0.9), replaced, overshot)
