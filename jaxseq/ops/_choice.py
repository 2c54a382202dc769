"""The choice of blocks in Native Sparse Attention (Yuan et al. 2025, arXiv:2502.11089, eq. 9 and 11), from compressed scores."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxseq.ops._attend import Span


def shared(p_BGCS: jax.Array, span: Span, find: Callable, inside: int, cells: int) -> jax.Array:
    """Scores [B, G, C, N] of larger blocks from those of compressed ones: their sum, each times the number of strides that the
    two share (eq. 9). A compressed block has `inside` strides and begins at every one; a larger block has `cells`.

    span: numbers of the compressed blocks that a query sees, from the first of its document; find: see `finder`.
    """
    shift_R = jnp.arange(1 - inside, cells)
    share_R = jnp.minimum(jnp.minimum(shift_R + inside, cells - shift_R), inside)
    most = -(-(p_BGCS.shape[3] + inside - 1) // cells)
    index_NR = jnp.arange(most)[:, None] * cells + shift_R
    number_BCNR = span.low_BT[..., None, None] + index_NR
    place_BCNR, there_BCNR = find(number_BCNR)
    seen_BCNR = (index_NR >= 0) & (number_BCNR <= span.high_BT[..., None, None]) & there_BCNR
    place_B1CN = jax.lax.collapse(jnp.where(seen_BCNR, place_BCNR, 0), 2)[:, None]
    p_BGCNR = jnp.take_along_axis(p_BGCS, place_B1CN, axis=3).reshape(*p_BGCS.shape[:3], *index_NR.shape)
    return jnp.sum(jnp.where(seen_BCNR[:, None], p_BGCNR * share_R.astype(p_BGCS.dtype), 0), axis=4)


def best(p_BGCN: jax.Array, own_BC: jax.Array, count: int) -> jax.Array:
    """[B, C, G, count]: the own block, then of the blocks before it 0, the last one, and those with the largest scores."""
    back_BCN = own_BC[..., None] - jnp.arange(p_BGCN.shape[3])
    first_BCN = (back_BCN == own_BC[..., None]) | (back_BCN == 1)
    p_BGCN = jnp.where((back_BCN > 0)[:, None], jnp.where(first_BCN[:, None], jnp.inf, p_BGCN), -1)
    top_BGCA, best_BGCA = jax.lax.top_k(p_BGCN, min(count - 1, p_BGCN.shape[3]))
    own_BGC1 = jnp.broadcast_to(own_BC[:, None, :, None], (*best_BGCA.shape[:3], 1))
    index_BGCA = jnp.concatenate([own_BGC1, jnp.where(top_BGCA < 0, -1, best_BGCA)], axis=3)
    more = count - index_BGCA.shape[3]
    return jnp.moveaxis(jnp.pad(index_BGCA, ((0, 0), (0, 0), (0, 0), (0, more)), constant_values=-1), 1, 2)
