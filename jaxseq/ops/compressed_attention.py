"""Causal softmax attention to compressed blocks of keys and values, and the choice of blocks by their scores (Native Sparse
Attention, Yuan et al. 2025, arXiv:2502.11089, eq. 7 to 10).

    K_i, V_i = compressed k and v of the tokens i stride to i stride + block - 1 of the document
    y_t = sum_i softmax_i(scale q_t . K_i) V_i,   i over the blocks that end at t or before

Before the end of the first block y = 0. Blocks are disjoint by default (stride = block), and are compressed to their means, as in
flash-linear-attention; with `maps`, the arrays of a `Compression`, to the output of a learned map, as in the paper:

    K_i = silu(sum_j (k_{i stride + j} + e_j) W_j) U    (a perceptron of all tokens of the block, with e_j for their places)

with maps for keys and others for values, the same for all heads. The paper does not name the activation. As in `attention`, H
query heads share G key/value heads; `scale` is 1 / sqrt(K) by default.

`select` chooses blocks for `block_sparse_attention` from the state before a call and the call's queries and keys.

State: the document's complete blocks in the ring buffer of `attention`, a slot per block, in the accumulation dtype, as are
scores and sums; and the last `block` keys and values in another.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq import compat
from jaxseq.ops import _attend, _choice, _time, attention
from jaxseq.ops._attend import Keys, Score, Span, attend
from jaxseq.ops._example import Example, stresses
from jaxseq.ops.attention import AttentionState
from jaxseq.ops.block_sparse_attention import finder, taken, weights


class CompressedAttentionState(NamedTuple):
    """The blocks of the document so far."""

    blocks: AttentionState  # complete blocks; its count is their number
    last: AttentionState  # the last `block` tokens


class Perceptron(NamedTuple):
    """[J, K] tokens of a block -> [K]; J = block."""

    place_JK: jax.Array
    in_JKF: jax.Array
    out_FK: jax.Array

    def __call__(self, x_JK: jax.Array) -> jax.Array:
        """x [..., J, K]."""
        place_JK, in_JKF, out_FK = (x.astype(x_JK.dtype) for x in self)
        hidden_F = compat.einsum("...jk,jkf->...f", x_JK + place_JK, in_JKF, dtype=x_JK.dtype)
        return compat.einsum("...f,fk->...k", jax.nn.silu(hidden_F), out_FK, dtype=x_JK.dtype)

    def check(self, block: int, size: int) -> None:
        """Raises AssertionError unless the shapes are those for blocks of `block` tokens with `size` channels."""
        chex.assert_shape(self.place_JK, (block, size))
        chex.assert_shape(self.in_JKF, (block, size, None))
        chex.assert_shape(self.out_FK, (self.in_JKF.shape[2], size))


class Compression(NamedTuple):
    keys: Perceptron
    values: Perceptron

    def maps(self) -> dict[str, jax.Array]:
        """Its arrays by name, as the op takes them: "keys_place_JK", …"""
        return {f"{kind}_{name}": x for kind, map_ in self._asdict().items() for name, x in map_._asdict().items()}

    @classmethod
    def of(cls, maps: dict[str, jax.Array]) -> "Compression":
        """Inverse of `maps`. Raises TypeError for other names."""
        names = [[f"{kind}_{name}" for name in Perceptron._fields] for kind in cls._fields]
        if set(maps) != {name for some in names for name in some}:
            raise TypeError(f"the maps of a compression are {names}, not {sorted(maps)}")
        return cls(*(Perceptron(*(maps[name] for name in some)) for some in names))


def init_state(
    batch: int, context: int, kv_heads: int, key_size: int, value_size: int, block: int, dtype: DTypeLike = jnp.float32,
    stride: int | None = None,
) -> CompressedAttentionState:  # fmt: skip
    """The empty state for documents of `context` tokens; blocks are at least in float32."""
    most, sizes = max(int(_complete(context, block, stride or block)), 1), (kv_heads, key_size, value_size)
    blocks = attention.init_state(batch, most, *sizes, jnp.promote_types(dtype, jnp.float32))
    return CompressedAttentionState(blocks, attention.init_state(batch, block, *sizes, dtype))


def _complete(tokens, block: int, stride: int):
    """The number of blocks that end within so many tokens of a document."""
    return (tokens >= block) * ((tokens - block) // stride + 1)


class _Options(NamedTuple):
    block: int
    stride: int
    compression: Compression | None

    @classmethod
    def of(cls, block: int, stride: int | None, maps: dict[str, jax.Array]) -> "_Options":
        chex.assert_scalar_positive(block)
        chex.assert_scalar_in(stride or block, 1, block)
        return cls(block, stride or block, Compression.of(maps) if maps else None)

    def complete(self, tokens: jax.Array) -> jax.Array:
        return _complete(tokens, self.block, self.stride)

    def compressed(self, k_JK: jax.Array, v_JV: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[..., J, K] -> [..., K] and [..., J, V] -> [..., V]."""
        if self.compression is None:
            return jnp.mean(k_JK, axis=-2), jnp.mean(v_JV, axis=-2)
        return self.compression.keys(k_JK), self.compression.values(v_JV)


def _prepare(q_BTHK, k_BTGK, v_BTGV, state, pos, options: _Options, scale):
    last = None if state is None else state.last
    scale, q_BTHK, k_BTGK, v_BTGV, pos_BT = attention._prepare(q_BTHK, k_BTGK, v_BTGV, last, pos, None, scale)
    if options.compression is not None:
        options.compression.keys.check(options.block, k_BTGK.shape[3])
        options.compression.values.check(options.block, v_BTGV.shape[3])
    if state is None:
        batch, time, kv_heads, key_size = k_BTGK.shape
        sizes = batch, time, kv_heads, key_size, v_BTGV.shape[3]
        state = init_state(*sizes, options.block, k_BTGK.dtype, options.stride)
    chex.assert_axis_dimension(state.last.k_BGSK, 2, options.block)
    return scale, state, q_BTHK, k_BTGK, v_BTGV, pos_BT


class _Blocks(NamedTuple):
    """The blocks of a call: those of the state and the U that end in this call."""

    keys: Keys  # numbered consecutively from the state's count, without restarting at documents
    span: Span  # of each token: the blocks of its document that have ended
    state: CompressedAttentionState  # after the call
    n_BT: jax.Array  # index of each token in its document


def _compress(state: CompressedAttentionState, k_BTGK, v_BTGV, pos_BT, options: _Options) -> _Blocks:
    """T >= 1."""
    time, valid_BT = pos_BT.shape[1], _time.valid(pos_BT)
    n_BT, _ = attention.indices(state.last.count_B, pos_BT)
    complete_BT = options.complete(n_BT + 1)
    ends_BT = valid_BT & (complete_BT > options.complete(n_BT))
    most = (time + options.stride - 1) // options.stride
    t_BU = jnp.sort(jnp.where(ends_BT, jnp.arange(time), time), axis=1)[:, :most]  # the last token of each block
    there_BU, t_BU = t_BU < time, jnp.minimum(t_BU, time - 1)
    index_BU = jnp.take_along_axis(complete_BT, t_BU, axis=1) - 1
    pos_BU = jnp.where(there_BU, index_BU, _time.PAD)  # block 0 is START

    span, tokens = attention.gather(state.last, k_BTGK, v_BTGV, pos_BT, None)
    number_BUJ = jnp.take_along_axis(span.high_BT, t_BU, axis=1)[..., None] - jnp.arange(options.block - 1, -1, -1)
    place_BUJ, _ = finder(state.last.count_B, options.block)(number_BUJ)
    place_B1UJ = jnp.where(there_BU[..., None], place_BUJ, 0)[:, None]
    acc = state.blocks.k_BGSK.dtype
    k_BGUK, v_BGUV = options.compressed(*(taken(x, place_B1UJ).astype(acc) for x in (tokens.k_BGSK, tokens.v_BGSV)))
    k_BUGK, v_BUGV = (_time.select(there_BU, jnp.swapaxes(x, 1, 2)) for x in (k_BGUK, v_BGUV))

    _, keys = attention.gather(state.blocks, k_BUGK, v_BUGV, pos_BU, None)
    high_BT = state.blocks.count_B[:, None] + jnp.cumsum(ends_BT, axis=1, dtype=jnp.int32) - 1
    span = Span(high_BT + 1 - complete_BT, jnp.where(valid_BT, high_BT, -1))
    after = attention.next_state(state.blocks, k_BUGK, v_BUGV, pos_BU)
    last = attention.next_state(state.last, k_BTGK, v_BTGV, pos_BT)
    kept_B = _time.continues(pos_BT) | (last.count_B >= options.block)
    after = jax.tree.map(lambda x: _time.select(kept_B, x), after)  # a new document without a complete block: empty
    return _Blocks(keys, span, CompressedAttentionState(after, last), n_BT)


def recurrent(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGV: jax.Array, *, block: int, stride: int | None = None,
    state: CompressedAttentionState | None = None, pos: jax.Array | None = None, scale: float | None = None, **maps: jax.Array,
) -> tuple[jax.Array, CompressedAttentionState]:  # fmt: skip
    """One token after another: store it, compress the stored tokens at the end of a block, attend to the blocks."""
    options = _Options.of(block, stride, maps)
    factor, before, *xs, pos_BT = _prepare(q_BTHK, k_BTGK, v_BTGV, state, pos, options, scale)
    if q_BTHK.shape[1] == 0:
        return attention._no_tokens(q_BTHK, v_BTGV), before
    acc = before.blocks.k_BGSK.dtype

    def add(blocks, last, ends_B):
        slot_B1S1 = ((last.count_B[:, None] + jnp.arange(block)) % block)[:, None, :, None]  # the oldest token first
        kv = (jnp.take_along_axis(x, slot_B1S1, axis=2).astype(acc) for x in (last.k_BGSK, last.v_BGSV))
        written = attention._write(blocks, *options.compressed(*kv))
        return jax.tree.map(lambda new, old: jnp.where(_time.expand(ends_B, new), new, old), written, blocks)

    def step(state, q_BHK, k_BGK, v_BGV):
        last = attention._write(state.last, k_BGK, v_BGV)
        ends_B = options.complete(last.count_B) > state.blocks.count_B
        blocks = jax.lax.cond(jnp.any(ends_B), add, lambda blocks, last, ends_B: blocks, state.blocks, last, ends_B)
        keys = Keys(blocks.k_BGSK, blocks.v_BGSV, attention._slots(blocks.count_B, blocks.k_BGSK.shape[2]))
        span = attention._latest(blocks.count_B, None)
        y_B1HV, _ = attend(q_BHK[:, None].astype(acc), keys, span, Score(factor))
        return CompressedAttentionState(blocks, last), y_B1HV[:, 0].astype(q_BHK.dtype)

    return _time.scan_time(step, before, xs, pos_BT)


def _all_at_once(q_BTHK, k_BTGK, v_BTGV, state, pos, options: _Options, scale, chunk):
    """All tokens against the blocks of the state and of this call; `chunk`: see `attend`."""
    dtype = q_BTHK.dtype
    scale, before, q_BTHK, k_BTGK, v_BTGV, pos_BT = _prepare(q_BTHK, k_BTGK, v_BTGV, state, pos, options, scale)
    if q_BTHK.shape[1] == 0:
        return attention._no_tokens(q_BTHK, v_BTGV), before
    blocks = _compress(before, k_BTGK, v_BTGV, pos_BT, options)
    y_BTHV, _ = attend(q_BTHK.astype(blocks.keys.k_BGSK.dtype), blocks.keys, blocks.span, Score(scale), chunk)
    return attention.finish(y_BTHV, y_BTHV, None, pos_BT, dtype), blocks.state


def parallel(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGV: jax.Array, *, block: int, stride: int | None = None,
    state: CompressedAttentionState | None = None, pos: jax.Array | None = None, scale: float | None = None, **maps: jax.Array,
) -> tuple[jax.Array, CompressedAttentionState]:  # fmt: skip
    """The scores of all tokens with all blocks at once."""
    return _all_at_once(q_BTHK, k_BTGK, v_BTGV, state, pos, _Options.of(block, stride, maps), scale, None)


def chunkwise(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGV: jax.Array, *, block: int, stride: int | None = None,
    state: CompressedAttentionState | None = None, pos: jax.Array | None = None, scale: float | None = None, chunk: int = 128,
    **maps: jax.Array,
) -> tuple[jax.Array, CompressedAttentionState]:  # fmt: skip
    """Chunks of `chunk` queries by chunks of `chunk` blocks with an online softmax; the backward pass recomputes the scores."""
    return _all_at_once(q_BTHK, k_BTGK, v_BTGV, state, pos, _Options.of(block, stride, maps), scale, chunk)


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}
CUT = "ring"


def select(
    q_BTHK: jax.Array, k_BTGK: jax.Array, count: int, *, block: int, stride: int | None = None,
    chosen: int | None = None, state: CompressedAttentionState | None = None, pos: jax.Array | None = None,
    scale: float | None = None, chunk: int = 256, **maps: jax.Array,
) -> jax.Array:  # fmt: skip
    """The blocks [B, T, G, count] int32 of `chosen` tokens (default: `block`) that each query and key head attends to, -1 for
    none; they have no gradient.

    First the query's own block, then block 0 and the block before the query's own, then the complete blocks with the largest
    score. The score of block j is that of the compressed blocks i, p_i = softmax_i(scale q_t . K_i) summed over the query heads
    of a key head, times the number of strides of `stride` tokens that i shares with j (eq. 8 to 10; `block` and `chosen` must
    be multiples of `stride`, and `block` <= `chosen`). Of equal ones the first is chosen, so the choice does not depend on the
    form of the ops around it. Chunks of `chunk` queries limit the memory.
    """
    q_BTHK, k_BTGK, state, maps = jax.lax.stop_gradient((q_BTHK, k_BTGK, state, maps))
    chosen, options = chosen or block, _Options.of(block, stride, maps)
    if options.compression is not None:  # the values play no part
        options = options._replace(compression=Compression(options.compression.keys, options.compression.keys))
    chex.assert_is_divisible(block, options.stride)
    chex.assert_is_divisible(chosen, options.stride)
    chex.assert_scalar_in(block, 1, chosen)
    if state is not None:
        state = CompressedAttentionState(*(ring._replace(v_BGSV=ring.k_BGSK) for ring in state))
    factor, before, q_BTHK, k_BTGK, _, pos_BT = _prepare(q_BTHK, k_BTGK, k_BTGK, state, pos, options, scale)
    if (time := q_BTHK.shape[1]) == 0:
        return jnp.zeros((*k_BTGK.shape[:3], count), jnp.int32)
    blocks = _compress(before, k_BTGK, k_BTGK, pos_BT, options)
    k_BGSK, _, number_BS = blocks.keys
    count_B, slots = before.blocks.count_B, before.blocks.k_BGSK.shape[2]

    def queries(row):
        high_BC, low_BC, own_BC, q_BCHK = row
        seen_BCS = _attend.visible(Span(low_BC, high_BC), number_BS)[:, None, None]
        q_BGRCK = _attend.grouped(q_BCHK.astype(k_BGSK.dtype), k_BGSK.shape[1])
        scores_BGRCS = compat.einsum("bgrck,bgsk->bgrcs", q_BGRCK, k_BGSK, dtype=k_BGSK.dtype) * factor
        p_BGCS = jnp.sum(weights(scores_BGRCS, seen_BCS), axis=2)
        strides = options.block // options.stride, chosen // options.stride
        p_BGCN = _choice.shared(p_BGCS, Span(low_BC, high_BC), finder(count_B, slots), *strides)
        return _choice.best(p_BGCN, own_BC, count)

    rows = blocks.span.high_BT, blocks.span.low_BT, blocks.n_BT // chosen, q_BTHK
    index_BTGA = _time.join_chunks(jax.lax.map(queries, _time.split_chunks(min(chunk, time), *rows)), time)
    return _time.select(_time.valid(pos_BT), index_BTGA, -1)


def _inputs(key: jax.Array, batch: int, time: int, dtype: DTypeLike) -> tuple[jax.Array, ...]:
    keys = jax.random.split(key, 3)
    shapes = (batch, time, 4, 6), (batch, time, 2, 6), (batch, time, 2, 5)
    return tuple(jax.random.normal(k, shape, dtype) for k, shape in zip(keys, shapes, strict=True))


def _compression(key: jax.Array, block: int, hidden: int, dtype: DTypeLike) -> Compression:
    def perceptron(key, size):
        keys, shapes = jax.random.split(key, 3), ((block, size), (block, size, hidden), (hidden, size))
        return Perceptron(*(jax.random.normal(k, shape, dtype) for k, shape in zip(keys, shapes, strict=True)))

    return Compression(*map(perceptron, jax.random.split(key), (6, 5)))


def _example(key: jax.Array, batch: int, time: int, prefix: int, context: int, dtype: DTypeLike) -> Example:
    """An example whose state is for `context` tokens, `prefix` of which it has read."""
    key_x, key_prefix, key_map = jax.random.split(key, 3)
    maps = _compression(key_map, 4, 3, jnp.promote_types(dtype, jnp.float32)).maps()
    options, empty = {"block": 4, "stride": 2}, init_state(batch, context, 2, 6, 5, 4, dtype, 2)
    state = recurrent(*_inputs(key_prefix, batch, prefix, dtype), **maps, block=4, stride=2, state=empty)[1]
    return Example(_inputs(key_x, batch, time, dtype), maps, options, state)


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`. The state is for T tokens, at least 16."""
    return _example(key, batch, time, 16, max(time, 16), dtype)


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """The log-decays of `stresses` become score differences: none, small, about 50, and a mix of these."""
    base = _example(key, batch, time, 15, 15 + time, dtype)
    q_BTHK, *kv = base.xs

    def sharpened(log_BTH1):
        return base._replace(xs=(q_BTHK * jnp.clip(log_BTH1, -50, 0), *kv))

    return stresses(key, base, (*q_BTHK.shape[:3], 1), sharpened)
