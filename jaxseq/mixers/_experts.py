"""Grouped matrix products: each row is multiplied by the weights of its expert.

Rows are sorted by expert, so that any routing becomes a few dense products (Gale et al. 2022, arXiv:2211.15841). On TPU and GPU
this is `jax.lax.ragged_dot`. On CPU, where `ragged_dot` multiplies every row by every expert, it is a loop over the tiles that
contain rows.
"""

import jax
import jax.numpy as jnp

from jaxseq import compat
from jaxseq.ops import _time

TILE = 128  # maximum number of rows


@jax.custom_vjp
def grouped(x_ND: jax.Array, w_EDF: jax.Array, size_E: jax.Array) -> jax.Array:
    """[N, F]: the first size_E[0] rows of x times w[0], the next size_E[1] rows times w[1] …; remaining rows are zero."""
    return jax.lax.platform_dependent(x_ND, w_EDF, size_E, cpu=_tiles, default=_ragged)


def _forward(x_ND, w_EDF, size_E):
    return grouped(x_ND, w_EDF, size_E), (x_ND, w_EDF, size_E)


def _backward(residuals, dy_NF):
    return *jax.lax.platform_dependent(*residuals, dy_NF, cpu=_tiles_backward, default=_ragged_backward), None


grouped.defvjp(_forward, _backward)


def _covered(y_NF, size_E):
    return _time.select(jnp.arange(y_NF.shape[0]) < jnp.sum(size_E), y_NF)


def _ragged(x_ND, w_EDF, size_E):
    return _covered(jax.lax.ragged_dot(x_ND, w_EDF, size_E), size_E)


def _ragged_backward(x_ND, w_EDF, size_E, dy_NF):
    (dx_ND,) = jax.linear_transpose(lambda x_ND: jax.lax.ragged_dot(x_ND, w_EDF, size_E), x_ND)(dy_NF)
    (dw_EDF,) = jax.linear_transpose(lambda w_EDF: jax.lax.ragged_dot(x_ND, w_EDF, size_E), w_EDF)(dy_NF)
    return _covered(dx_ND, size_E), dw_EDF


def _plan(rows: int, size_E: jax.Array):
    """(rows per tile, number of tiles, function: tile -> (expert, first row, number of rows of this expert)).

    Tiles follow the sorted rows; the last tile of an expert may overlap the rows of the next expert.
    """
    tile = min(TILE, max(8, 1 << (rows // size_E.shape[0]).bit_length()))
    count_E = -(-size_E // tile)
    end_E, first_E = jnp.cumsum(count_E), jnp.cumsum(size_E) - size_E

    def place(i):
        e = jnp.searchsorted(end_E, i, side="right").astype(jnp.int32)
        done = (i - end_E[e] + count_E[e]) * tile
        return e, first_E[e] + done, jnp.minimum(size_E[e] - done, tile)

    return tile, end_E[-1], place


def _filled(x_ND, tile: int):
    """x with `tile` zero rows appended, so that the last tile stays in bounds."""
    return jnp.pad(x_ND, ((0, tile), (0, 0)))


def _product(x_ND, w_EDF, size_E, contract: int):
    """Each row times the matrix of its expert, contracted over the matrix axis `contract`."""
    rows = x_ND.shape[0]
    tile, tiles, place = _plan(rows, size_E)
    x_ND = _filled(x_ND, tile)

    def body(i, y_NF):
        e, start, _ = place(i)
        x_CD = jax.lax.dynamic_slice_in_dim(x_ND, start, tile)
        w_DF = jax.lax.dynamic_index_in_dim(w_EDF, e, keepdims=False)
        y_CF = jax.lax.dot_general(x_CD, w_DF, (((1,), (contract,)), ((), ())))
        return jax.lax.dynamic_update_slice_in_dim(y_NF, y_CF, start, 0)  # the next tile overwrites the overlap

    y_NF = jnp.zeros((rows + tile, w_EDF.shape[2 - contract]), x_ND.dtype)
    return _covered(jax.lax.fori_loop(0, tiles, body, y_NF)[:rows], size_E)


def _tiles(x_ND, w_EDF, size_E):
    return _product(x_ND, w_EDF, size_E, 0)


def _tiles_backward(x_ND, w_EDF, size_E, dy_NF):
    tile, tiles, place = _plan(x_ND.shape[0], size_E)
    acc = _time.accumulation_dtype(w_EDF)
    filled_x, filled_dy = _filled(x_ND, tile), _filled(dy_NF, tile)

    def body(i, dw_EDF):
        e, start, own = place(i)
        x_CD, dy_CF = (jax.lax.dynamic_slice_in_dim(x, start, tile) for x in (filled_x, filled_dy))
        dy_CF = _time.select(jnp.arange(tile) < own, dy_CF)
        more_DF = compat.einsum("cd,cf->df", x_CD, dy_CF, dtype=acc)
        return dw_EDF.at[e].add(more_DF)

    dw_EDF = jax.lax.fori_loop(0, tiles, body, jnp.zeros(w_EDF.shape, acc))
    return _product(dy_NF, w_EDF, size_E, 1), dw_EDF.astype(w_EDF.dtype)


@jax.custom_vjp
def permute(x_ND: jax.Array, order_N: jax.Array, back_N: jax.Array) -> jax.Array:
    """x[order]; `back` is the inverse permutation, so that the gradient is a gather instead of a scatter."""
    return x_ND[order_N]


permute.defvjp(lambda x, order, back: (x[order], back), lambda back, dy: (dy[back], None, None))
