"""Block-sparse attention with global, near and random blocks (BigBird, Zaheer et al. 2020, arXiv:2007.14062, §2 and appendix D).

Blocks are those of a document: block i holds its tokens i block to (i + 1) block - 1, and its last one may be shorter.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxseq.mixers import _random_blocks
from jaxseq.models import _sparse_attention, _transformer
from jaxseq.models._sparse_attention import Subset
from jaxseq.ops import _time


class Blocks(NamedTuple):
    """What the tokens of all layers see. Padding is at the end of a row."""

    segment_BT: jax.Array  # document of each token, 0 is padding
    full: Subset | None  # the tokens that see their whole document; None: all of them
    place_BT: jax.Array | None = None  # where a token of a long document is among Z C places; each document begins a block
    token_BN: jax.Array | None = None  # the token at each of N = Z C places; T: none
    index_BZ: jax.Array | None = None  # number of a block in its document
    count_BZ: jax.Array | None = None  # blocks of that document


def longest_full(block: int, random_blocks: int) -> int:
    """Tokens of a document up to which attention is full, as in the released code: the blocks that a token sees, twice the
    random ones."""
    return (5 + 2 * random_blocks) * block


def layout(segment_BT: jax.Array, block: int, random_blocks: int, packed: bool) -> Blocks:
    """packed: a row may hold several documents or padding; otherwise each row is one document."""
    time, most = segment_BT.shape[1], longest_full(block, random_blocks)
    if time <= most:
        return Blocks(segment_BT, None)
    t_T = jnp.arange(time, dtype=jnp.int32)
    length_BT = jax.vmap(lambda x_T: jnp.zeros(time + 1, jnp.int32).at[x_T].add(1)[x_T])(segment_BT)
    first_BT = (segment_BT > 0) & jnp.diff(segment_BT, axis=1, prepend=0).astype(bool)
    number_BT = t_T - jax.lax.cummax(jnp.where(first_BT, t_T, 0), axis=1)
    count_BT, index_BT = -(-length_BT // block), number_BT // block
    long_BT = (segment_BT > 0) & (length_BT > most)
    base_BT = jnp.cumsum(jnp.where(first_BT & long_BT, count_BT, 0), axis=1, dtype=jnp.int32) - count_BT
    documents = time // (most + 1) if packed else 1
    places = (time + documents * (block - 1)) // block * block
    place_BT = jnp.where(long_BT, base_BT * block + number_BT, places)
    fill = lambda place_T: jnp.full(places, time, jnp.int32).at[place_T].set(t_T, mode="drop")  # noqa: E731
    token_BN = jax.vmap(fill)(place_BT)
    index_BZ, count_BZ = (_sparse_attention.take(x, token_BN[:, ::block]) for x in (index_BT, count_BT))
    full_BT = (segment_BT > 0) & (~long_BT | (index_BT == 0) | (index_BT == count_BT - 1))
    last = time - (time - 1) // block * block  # tokens of the last block of the only document
    subset = Subset.of(full_BT, None if packed else block + last)
    return Blocks(segment_BT, subset, jnp.minimum(place_BT, places - 1), token_BN, index_BZ, count_BZ)


class BlockAttention(_transformer.MultiHeadAttention):
    """Multi-head attention in which a token sees blocks of its document: the first and the last one, its own, the one before and
    the one after it, and `random_blocks` others. The tokens of the first and of the last block see the whole document, and so do
    those of a document of at most `longest_full` tokens.

    The random blocks are different from each other and from the rest, and depend only on the layer, the head, the number of the
    block and the number of blocks: `_random_blocks`. With `drawn` False they are all the first block, which then counts 1 +
    `random_blocks` times in the softmax. There is no dropout of the attention weights, as in the released code.
    """

    block_size: int = 64
    random_blocks: int = 3

    def __call__(self, x_BTD: jax.Array, sight: Blocks, layer: jax.Array, drawn: bool) -> jax.Array:
        """y_BTD. layer: its number."""
        scale, segment_BT, subset = self.head_size**-0.5, sight.segment_BT, sight.full
        q_BTHK, k_BTHK, v_BTHK = self.q(x_BTD), *self.keys_values(x_BTD)
        if subset is None:
            y_BTHV, _ = _sparse_attention.attend(q_BTHK, k_BTHK, v_BTHK, segment_BT, segment_BT, scale, None)
            return self.o(y_BTHV.astype(v_BTHK.dtype))
        y_BTHV = self._chosen(q_BTHK, k_BTHK, v_BTHK, sight, layer, drawn)
        whole = subset.take(q_BTHK), k_BTHK, v_BTHK, subset.segments(segment_BT), segment_BT
        y_BTHV = subset.put(_sparse_attention.attend(*whole, scale, subset.chunk)[0], y_BTHV)
        return self.o(y_BTHV.astype(v_BTHK.dtype))

    def _chosen(self, q_BTHK, k_BTHK, v_BTHK, sight: Blocks, layer, drawn: bool) -> jax.Array:
        """y_BTHV of the tokens that do not see the whole document; of others, numbers without meaning."""
        real_BN, index_BHZA, bias_BHZA = sight.token_BN < sight.segment_BT.shape[1], *self._choice(sight, layer, drawn)
        arrays = (_time.select(real_BN, _sparse_attention.take(x, sight.token_BN)) for x in (q_BTHK, k_BTHK, v_BTHK))
        blocks = [_sparse_attention.to_blocks(x, self.block_size) for x in arrays]
        real_BZC = real_BN.reshape(real_BN.shape[0], -1, self.block_size)
        seen_BHZAC = jax.vmap(lambda real_ZC, index_HZA: real_ZC[index_HZA])(real_BZC, index_BHZA)
        bias_BHZAC = jnp.where(seen_BHZAC, bias_BHZA[..., None], -jnp.inf)
        bias_BHZ1S = jax.lax.collapse(bias_BHZAC, 3)[:, :, :, None]
        y_BHZCV, _ = _sparse_attention.attend_blocks(*blocks, index_BHZA, bias_BHZ1S, self.head_size**-0.5)
        return _sparse_attention.take(_sparse_attention.from_blocks(y_BHZCV, real_BN.shape[1]), sight.place_BT)

    def _choice(self, sight: Blocks, layer, drawn: bool) -> tuple[jax.Array, jax.Array]:
        """(the blocks that each block sees, the logarithm of how often it counts them: -inf is not at all)"""
        i_B1Z1, n_B1Z1 = (x[:, None, :, None] for x in (sight.index_BZ, sight.count_BZ))
        near_B1Z3 = i_B1Z1 + jnp.arange(-1, 2)
        ends_B1Z2 = jnp.concatenate([jnp.zeros_like(n_B1Z1), n_B1Z1 - 1], axis=3)
        far_B1Z2 = jnp.abs(ends_B1Z2 - i_B1Z1) > 1
        block_BHZA = jnp.concatenate([near_B1Z3, ends_B1Z2], axis=3)
        seen_BHZA = jnp.concatenate([(near_B1Z3 >= 0) & (near_B1Z3 < n_B1Z1), far_B1Z2], axis=3)
        times = 1
        if drawn and self.random_blocks:
            random_BHZA = draw(self.random_blocks, layer, jnp.arange(self.heads)[None, :, None], i_B1Z1[..., 0], n_B1Z1[..., 0])
            shape = block_BHZA.shape[0], self.heads, block_BHZA.shape[2]
            block_BHZA, seen_BHZA, random_BHZA = (
                jnp.broadcast_to(x, (*shape, x.shape[3])) for x in (block_BHZA, seen_BHZA, random_BHZA)
            )
            block_BHZA = jnp.concatenate([block_BHZA, random_BHZA], axis=3)
            seen_BHZA = jnp.concatenate([seen_BHZA, random_BHZA >= 0], axis=3)
        elif self.random_blocks:
            times = jnp.where(block_BHZA == 0, 1 + self.random_blocks, 1)
        acc = _time.accumulation_dtype(jnp.zeros((), self.dtype))
        bias_BHZA = jnp.where(seen_BHZA, jnp.log(jnp.asarray(times, acc)), -jnp.inf)
        first_Z = jnp.arange(sight.index_BZ.shape[1]) - sight.index_BZ  # of the block's document
        return jnp.clip(first_Z[:, None, :, None] + block_BHZA, 0, first_Z.shape[1] - 1), bias_BHZA


def draw(random_blocks: int, layer: jax.Array, head: jax.Array, i: jax.Array, n: jax.Array) -> jax.Array:
    """[..., random_blocks] int32: of n blocks, some that block i does not see: not 0, n - 1 and i - 1 to i + 1. -1: no more."""
    low, high = jnp.maximum(i - 1, 1), jnp.minimum(i + 1, n - 2)
    near = jnp.maximum(high - low + 1, 0)
    free = _random_blocks.draw(n - 2 - near, random_blocks, layer, head, i, n)
    return jnp.where(free < 0, -1, free + 1 + jnp.where(free + 1 >= low[..., None], near[..., None], 0))
