"""Causal convolutions with filters as long as the sequence, exact for rows that hold several documents.

    y_t = sum over s <= t of the same document of k_{t-s} u_s

A single FFT over a row mixes all tokens: documents leak into each other, and the magnitude of a later token affects how an
earlier output is rounded. Divide and conquer avoids both problems. A row is split into RADIX parts. Only the last document of
a part can contribute to a later part, and only to tokens of the same document, so masking before and after the FFT is exact.
Each part is split in the same way:

    y = direct products inside blocks of BLOCK tokens + parts of L tokens to later parts, for L = BLOCK, RADIX BLOCK, …

This takes log T steps. The FFT of a part is used for all later parts, and contributions are summed before the inverse FFT. No
later token enters the FFT of an earlier output, so causality does not depend on rounding.
"""

import functools

import jax
import jax.numpy as jnp

from jaxseq.ops import _time

BLOCK = 16
RADIX = 4


def across(left_BSD: jax.Array, k_WD: jax.Array, time: int) -> jax.Array:
    """Contribution of S inputs to the next `time` tokens: y_t = sum_s k_{S + t - s} left_s; taps beyond W are zero."""
    past, taps = left_BSD.shape[-2], k_WD.shape[0]
    reach, length = min(past, taps - 1), min(time, taps - 1)
    if min(reach, length) <= 0:
        return jnp.zeros((*left_BSD.shape[:-2], time, left_BSD.shape[-1]), left_BSD.dtype)
    # Lag 0 is not used. Its tap is often the largest and would only add rounding error to the others in the FFT.
    k_WD = k_WD[1 : reach + length]
    size = _circle(reach + length - 1)
    spectrum = jnp.fft.rfft(left_BSD[..., past - reach :, :], n=size, axis=-2) * jnp.fft.rfft(k_WD, n=size, axis=0)
    y_BTD = jnp.fft.irfft(spectrum, n=size, axis=-2)[..., reach - 1 : reach + length - 1, :]
    return jnp.pad(y_BTD, [(0, 0)] * (y_BTD.ndim - 2) + [(0, time - length), (0, 0)])


def _circle(read: int) -> int:
    """FFT size (a power of two) for which circular wrap-around does not reach the `read` outputs that are used."""
    return 1 << (read - 1).bit_length()


def _cut(x: jax.Array, size: int, fill=0) -> jax.Array:
    """[B, T, ...] -> [B, ceil(T / size), size, ...], padded at the end with `fill`."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size)) + ((0, 0),) * (x.ndim - 2), constant_values=fill)
    return x.reshape(x.shape[0], -1, size, *x.shape[2:])


def _direct(u_BTD, k_WD, seg_BT):
    """Convolution inside blocks of BLOCK tokens: one shifted product per tap."""
    time = u_BTD.shape[1]
    block = min(BLOCK, time)
    u_BZCD, seg_BZC = _cut(u_BTD, block), _cut(seg_BT, block, -1)
    past_BZCD = jnp.pad(u_BZCD, ((0, 0), (0, 0), (block - 1, 0), (0, 0)))
    past_BZC = jnp.pad(seg_BZC, ((0, 0), (0, 0), (block - 1, 0)), constant_values=-2)  # matches no document
    y_BZCD = jnp.zeros_like(u_BZCD)
    for j in range(min(block, k_WD.shape[0])):
        reach = slice(block - 1 - j, 2 * block - 1 - j)
        y_BZCD += k_WD[j] * _time.select(past_BZC[:, :, reach] == seg_BZC, past_BZCD[:, :, reach])
    return y_BZCD.reshape(u_BZCD.shape[0], -1, u_BZCD.shape[3])[:, :time]


def causal(u_BTD: jax.Array, k_WD: jax.Array, seg_BT: jax.Array) -> jax.Array:
    """Convolve each channel with its filter of W >= 1 taps, inside each document; `seg_BT` is the document number of a token.

    Inputs must be zero at padding and in the accumulation dtype. T >= 1. Returns y [B, T, D].
    """
    y_BTD, size = _direct(u_BTD, k_WD, seg_BT), BLOCK
    while size < u_BTD.shape[1]:
        y_BTD += _between(u_BTD, k_WD, seg_BT, size)
        size *= RADIX
    return y_BTD


def _between(u_BTD, k_WD, seg_BT, size: int):
    """Contributions between parts of `size` tokens, in groups of RADIX parts; P parts of C tokens."""
    time, taps = u_BTD.shape[1], k_WD.shape[0]
    parts, near = min(RADIX, -(-time // size)), min(size, taps - 1)  # the longest lag across a border
    if near == 0:
        return jnp.zeros_like(u_BTD)
    u_BZPCD, seg_BZPC = (
        x.reshape(*x.shape[:2], parts, size, *x.shape[3:])
        for x in (_cut(u_BTD, parts * size), _cut(seg_BT, parts * size, -1))
    )
    own_BZP = seg_BZPC[..., -1]  # the document that may continue in the next part
    last_BZPSD = _time.select(seg_BZPC[:, :, :-1, size - near :] == own_BZP[:, :, :-1, None], u_BZPCD[:, :, :-1, size - near :])
    circle = _circle(2 * near)
    u_BZPFD = jnp.fft.rfft(last_BZPSD, n=circle, axis=-2)
    starts = range(1, taps, size)  # first lag between parts at distance 1, 2, …; lag 0 is not used
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
