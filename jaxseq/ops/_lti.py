"""Linear time-invariant systems, one per channel: shared by the diagonal and the diagonal-plus-low-rank state space models.

    x_t = A x_{t-1} + b u_t          y_t = c . x_t          x in R^M for each channel of D

Only products of powers of A with vectors are needed. Baby steps c A^j, j < C, and giant steps A^{iC} b give the filter
c A^{iC+j} b of any length as one product over M. S4's Cauchy kernel would need c (I - A^T) for a given length T, and S4D's
Vandermonde matrix T x M exponentials. The same powers give the contribution of the incoming state to the outputs and to the next
state. An `Algebra` defines the product with A: complex numbers for a diagonal A, a matrix product otherwise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxseq.ops import _convolution, _time


class Algebra(NamedTuple):
    """Operations on the matrix A of a linear system."""

    times: Callable[[Any, jax.Array], jax.Array]  # A x for x [..., D, M]
    square: Callable[[Any], Any]  # A A
    transpose: Callable[[Any], Any]


def complex_times(a: jax.Array, x: jax.Array) -> jax.Array:
    """Products of complex numbers stored along the last axis as all real parts, then all imaginary parts."""
    (a_re, a_im), (x_re, x_im) = jnp.split(a, 2, axis=-1), jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a_re * x_re - a_im * x_im, a_re * x_im + a_im * x_re], axis=-1)


def conjugate(a: jax.Array) -> jax.Array:
    """Complex conjugates of numbers stored as all real parts, then all imaginary parts."""
    re, im = jnp.split(a, 2, axis=-1)
    return jnp.concatenate([re, -im], axis=-1)


class Power(NamedTuple):
    """A power of a diagonal A as a sum of two numbers, the second below the rounding error of the first.

    Squaring doubles the relative error of a power. So A^4096 by 12 squarings in float32 loses three more decimal digits than 4096
    successive products, whose errors are independent.
    """

    high: jax.Array
    low: jax.Array


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x as a sum of two numbers with half of its significant bits each, so that their products are exact."""
    high = jax.lax.reduce_precision(x, jnp.finfo(x.dtype).nexp, jnp.finfo(x.dtype).nmant // 2)
    return high, x - high


def _two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(a + b rounded, its rounding error) (Knuth, TAOCP volume 2, §4.2.2, theorem B)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


@jax.custom_jvp
def _square(high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The square of a Power. Only products of halves are used for the first part: they are exact, so it does not matter whether
    the compiler joins them with sums."""
    (re, im), (re_low, im_low) = jnp.split(high, 2, axis=-1), jnp.split(low, 2, axis=-1)
    (a, b), (c, d) = _halves(re), _halves(im)
    parts = _two_sum(a * a, -(c * c)), (2 * (a * c), jnp.zeros_like(a))
    rest_re = 2 * (a * b) - 2 * (c * d) + (b * b - d * d) + 2 * (re * re_low - im * im_low)
    rest_im = 2 * (a * d + b * c) + 2 * (b * d) + 2 * (re * im_low + im * re_low)
    (re, re_low), (im, im_low) = (_two_sum(x, error + more) for (x, error), more in zip(parts, (rest_re, rest_im), strict=True))
    return jnp.concatenate([re, im], axis=-1), jnp.concatenate([re_low, im_low], axis=-1)


@_square.defjvp
def _square_jvp(primals, tangents):
    square = _square(*primals)
    tangent = 2 * complex_times(primals[0], tangents[0] + tangents[1])
    return square, (tangent, jnp.zeros_like(tangent))


def _diagonal_square(a: jax.Array | Power) -> Power:
    return Power(*_square(*(a if isinstance(a, Power) else (a, jnp.zeros_like(a)))))


def _diagonal_times(a: jax.Array | Power, x: jax.Array) -> jax.Array:
    return complex_times(a.high, x) + complex_times(a.low, x) if isinstance(a, Power) else complex_times(a, x)


DIAGONAL = Algebra(_diagonal_times, _diagonal_square, lambda a: jax.tree.map(conjugate, a))
DENSE = Algebra(
    lambda a_DMN, x: jnp.einsum("dmn,...dn->...dm", a_DMN, x),
    lambda a_DMN: a_DMN @ a_DMN,
    lambda a_DMN: jnp.swapaxes(a_DMN, -1, -2),
)


def powers(algebra: Algebra, A: Any, x: jax.Array, count: int) -> tuple[jax.Array, Any]:
    """(x, A x, …, A^{count-1} x stacked along a new first axis, A^n with n the least power of two >= count); log(count) steps."""
    rows, reach = x[None], 1
    while reach < count:
        rows, A, reach = jnp.concatenate([rows, algebra.times(A, rows)]), algebra.square(A), 2 * reach
    return rows[:count], A


def squares(algebra: Algebra, A: Any, most: int) -> list:
    """A, A^2, A^4, …: what `advance` needs for at most `most` steps."""
    found = [A]
    while len(found) < most.bit_length():
        found.append(algebra.square(found[-1]))
    return found


def advance(algebra: Algebra, squares: list, x_BDM: jax.Array, steps_B: jax.Array) -> jax.Array:
    """A^steps x [B, D, M], with the exponent steps_B of each row."""
    for i, A in enumerate(squares):
        x_BDM = jnp.where(_time.expand((steps_B >> i) & 1 == 1, x_BDM), algebra.times(A, x_BDM), x_BDM)
    return x_BDM


def _backwards(u_BTD, pos_BT):
    """Inputs of each row's last document, newest first, then zeros."""
    time = u_BTD.shape[1]
    u_BTD = _time.select(_time.last_segment(pos_BT), u_BTD)
    index_BT = jnp.sum(_time.valid(pos_BT), axis=1, keepdims=True) - 1 - jnp.arange(time)
    taken_BTD = jnp.take_along_axis(u_BTD, jnp.maximum(index_BT, 0)[..., None], axis=1)
    return _time.select(index_BT >= 0, taken_BTD)


def total(algebra: Algebra, A: Any, b_DM: jax.Array, u_BTD: jax.Array, pos_BT: jax.Array) -> jax.Array:
    """The state [B, D, M] after the inputs, starting from the zero state. T >= 1."""
    time = u_BTD.shape[1]
    baby = 1 << ((time - 1).bit_length() + 1) // 2
    write_CDM, A = powers(algebra, A, b_DM, baby)
    v_BTD = jnp.pad(_backwards(u_BTD, pos_BT), ((0, 0), (0, -time % baby), (0, 0)))
    v_BZCD = v_BTD.reshape(v_BTD.shape[0], -1, baby, v_BTD.shape[2])
    x_ZBDM = jnp.einsum("bzcd,cdm->zbdm", v_BZCD, write_CDM)
    while len(x_ZBDM) > 1:  # neighbours in pairs: newer + A^C older
        x_ZBDM = jnp.pad(x_ZBDM, ((0, len(x_ZBDM) % 2), (0, 0), (0, 0), (0, 0)))
        x_ZBDM, A = x_ZBDM[0::2] + algebra.times(A, x_ZBDM[1::2]), algebra.square(A)
    return x_ZBDM[0]


def after(algebra: Algebra, A: Any, b_DM: jax.Array, u_BTD: jax.Array, x_BDM: jax.Array | None, pos_BT: jax.Array) -> jax.Array:
    """The state [B, D, M] after the inputs, starting from x_BDM (None: zero)."""
    new_BDM = total(algebra, A, b_DM, u_BTD, pos_BT)
    if x_BDM is None:
        return new_BDM
    count_B = jnp.sum(_time.valid(pos_BT), axis=1)
    # A row of padding alone returns its state bit for bit: no product is applied for zero steps, and 0 is added.
    old_BDM = advance(algebra, squares(algebra, A, u_BTD.shape[1]), x_BDM, count_B)
    return _time.select(_time.continues(pos_BT), old_BDM) + new_BDM


def parallel(
    algebra: Algebra, A: Any, b_DM: jax.Array, c_DM: jax.Array, u_BTD: jax.Array, x_BDM: jax.Array | None, pos_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(y_BTD, next x_BDM): convolution with the filter, plus the contribution of the state. u is zero at padding; T >= 1."""
    time, seg_BT = u_BTD.shape[1], _time.segments(pos_BT)
    baby = 1 << ((time - 1).bit_length() + 1) // 2
    giant = -(-time // baby)
    read_CDM, _ = powers(algebra, algebra.transpose(A), c_DM, baby)  # c A^j
    _, jump = powers(algebra, A, b_DM, baby)
    in_ZDM, _ = powers(algebra, jump, b_DM, giant)  # A^{iC} b
    filter_TD = jnp.einsum("cdm,zdm->zcd", read_CDM, in_ZDM).reshape(-1, u_BTD.shape[2])[:time]
    y_BTD = _convolution.causal(u_BTD, filter_TD, seg_BT)
    if x_BDM is not None:
        in_ZBDM, _ = powers(algebra, jump, algebra.times(A, x_BDM), giant)
        from_state_BZCD = jnp.einsum("cdm,zbdm->bzcd", read_CDM, in_ZBDM)
        y_BTD += _time.select(seg_BT == 0, from_state_BZCD.reshape(u_BTD.shape[0], -1, u_BTD.shape[2])[:, :time])
    return y_BTD, after(algebra, A, b_DM, u_BTD, x_BDM, pos_BT)


def chunkwise(
    algebra: Algebra, A: Any, b_DM: jax.Array, c_DM: jax.Array, u_BTD: jax.Array, x_BDM: jax.Array | None,
    pos_BT: jax.Array, chunk: int,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """(y_BTD, next x_BDM): products with tables shared by all chunks; the state is carried between chunks. T >= 1."""
    chunk = min(chunk, u_BTD.shape[1])
    read_CDM, _ = powers(algebra, algebra.transpose(A), c_DM, chunk + 1)
    write_CDM, _ = powers(algebra, A, b_DM, chunk)
    filter_CD, all_squares = jnp.einsum("cdm,dm->cd", read_CDM[:chunk], b_DM), squares(algebra, A, chunk)

    def form(u_BCD, *, state, pos):
        seg_BC = _time.segments(pos)
        y_BCD = _convolution.causal(u_BCD, filter_CD, seg_BC)
        y_BCD += _time.select(seg_BC == 0, jnp.einsum("cdm,bdm->bcd", read_CDM[1:], state))
        old_BDM = advance(algebra, all_squares, state, jnp.sum(_time.valid(pos), axis=1))
        new_BDM = jnp.einsum("bcd,cdm->bdm", _backwards(u_BCD, pos), write_CDM)
        return y_BCD, _time.select(_time.continues(pos), old_BDM) + new_BDM

    return _time.scan_chunks(form, x_BDM, (u_BTD,), pos_BT, chunk)
