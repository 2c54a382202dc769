"""Causal convolutions as long as the sequence, exact for rows that hold several documents.

    y_t = sum over s <= t of the same document of k_{t-s} u_s

One FFT over a row would mix everything: documents leak into each other, and the size of a later token decides how an earlier
output is rounded. Divide and conquer has neither fault. A row is cut into RADIX parts. What a part gives to a later one comes
from its last document alone and reaches only those tokens that go on with it, so that masks before and after an FFT are exact.
The parts are rows themselves:

    y = direct products inside blocks of BLOCK tokens + sum over L = BLOCK, RADIX BLOCK, …: parts of L tokens -> later parts

in log T steps. A part's FFT serves all later parts, and their sums are taken before the inverse. No later token enters an
earlier output's FFT: causality does not depend on rounding.
"""

import functools

import jax
import jax.numpy as jnp

from jaxseq.ops import _time

BLOCK = 16
RADIX = 4


def across(left_BSD: jax.Array, k_WD: jax.Array, time: int) -> jax.Array:
    """What S inputs give to the `time` tokens right after them: y_t = sum_s k_{S + t - s} left_s, taps past W being zero."""
    past, taps = left_BSD.shape[-2], k_WD.shape[0]
    reach, length = min(past, taps - 1), min(time, taps - 1)
    if min(reach, length) <= 0:
        return jnp.zeros((*left_BSD.shape[:-2], time, left_BSD.shape[-1]), left_BSD.dtype)
    # Lag 0 is not read. In the FFT its tap, often the largest, would only add to the rounding of the others.
    k_WD = k_WD[1 : reach + length]
    size = _circle(reach + length - 1)
    spectrum = jnp.fft.rfft(left_BSD[..., past - reach :, :], n=size, axis=-2) * jnp.fft.rfft(k_WD, n=size, axis=0)
    y_BTD = jnp.fft.irfft(spectrum, n=size, axis=-2)[..., reach - 1 : reach + length - 1, :]
    return jnp.pad(y_BTD, [(0, 0)] * (y_BTD.ndim - 2) + [(0, time - length), (0, 0)])


def _circle(read: int) -> int:
    """Size of an FFT whose circle holds all that is read; what wraps round falls outside of it."""
    return 1 << (read - 1).bit_length()


def _cut(x: jax.Array, size: int, fill=0) -> jax.Array:
    """[B, T, ...] -> [B, T / size, size, ...], filled up at the end."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size)) + ((0, 0),) * (x.ndim - 2), constant_values=fill)
    return x.reshape(x.shape[0], -1, size, *x.shape[2:])


def _direct(u_BTD, k_WD, seg_BT):
    """Inside blocks of BLOCK tokens: one shifted product a tap."""
    time = u_BTD.shape[1]
    block = min(BLOCK, time)
    u_BZCD, seg_BZC = _cut(u_BTD, block), _cut(seg_BT, block, -1)
    past_BZCD = jnp.pad(u_BZCD, ((0, 0), (0, 0), (block - 1, 0), (0, 0)))
    past_BZC = jnp.pad(seg_BZC, ((0, 0), (0, 0), (block - 1, 0)), constant_values=-2)  # of no document
    y_BZCD = jnp.zeros_like(u_BZCD)
    for j in range(min(block, k_WD.shape[0])):
        reach = slice(block - 1 - j, 2 * block - 1 - j)
        y_BZCD += k_WD[j] * _time.select(past_BZC[:, :, reach] == seg_BZC, past_BZCD[:, :, reach])
    return y_BZCD.reshape(u_BZCD.shape[0], -1, u_BZCD.shape[3])[:, :time]


def causal(u_BTD: jax.Array, k_WD: jax.Array, seg_BT: jax.Array) -> jax.Array:
    """The convolution of each channel with its filter of W taps, W >= 1, inside the documents that `seg_BT` numbers.

    Padding must be zero already, and everything in the accumulation dtype. T >= 1.
    """
    y_BTD, size = _direct(u_BTD, k_WD, seg_BT), BLOCK
    while size < u_BTD.shape[1]:
        y_BTD += _between(u_BTD, k_WD, seg_BT, size)
        size *= RADIX
    return y_BTD


def _between(u_BTD, k_WD, seg_BT, size: int):
    """What parts of `size` tokens give to later ones, RADIX parts at a time; P parts of C tokens."""
    time, taps = u_BTD.shape[1], k_WD.shape[0]
    parts, near = min(RADIX, -(-time // size)), min(size, taps - 1)  # no tap reaches further over a border than `near`
    if near == 0:
        return jnp.zeros_like(u_BTD)
    u_BZPCD, seg_BZPC = (
        x.reshape(*x.shape[:2], parts, size, *x.shape[3:])
        for x in (_cut(u_BTD, parts * size), _cut(seg_BT, parts * size, -1))
    )
    own_BZP = seg_BZPC[..., -1]  # the document that may go on
    last_BZPSD = _time.select(seg_BZPC[:, :, :-1, size - near :] == own_BZP[:, :, :-1, None], u_BZPCD[:, :, :-1, size - near :])
    circle = _circle(2 * near)
    u_BZPFD = jnp.fft.rfft(last_BZPSD, n=circle, axis=-2)
    starts = range(1, taps, size)  # of the lags between neighbours, between parts one further apart, …; lag 0 is not read
    filters = [jnp.fft.rfft(k_WD[start : start + 2 * near - 1], n=circle, axis=0) for start in starts[: parts - 1]]
    sums = []
    for i in range(1, parts):
        terms = (
            _time.select(own_BZP[:, :, i - d] == own_BZP[:, :, i - 1], u_BZPFD[:, :, i - d]) * filter_FD
            for d, filter_FD in enumerate(filters[:i], start=1)
        )
        sums.append(functools.reduce(jnp.add, terms))
    y_BZPSD = jnp.fft.irfft(jnp.stack(sums, axis=2), n=circle, axis=-2)[..., near - 1 : 2 * near - 1, :]
    y_BZPSD = _time.select(seg_BZPC[:, :, 1:, :near] == own_BZP[:, :, :-1, None], y_BZPSD)
    y_BZPCD = jnp.pad(y_BZPSD, ((0, 0), (0, 0), (1, 0), (0, size - near), (0, 0)))
    return y_BZPCD.reshape(u_BTD.shape[0], -1, u_BTD.shape[2])[:, :time]
