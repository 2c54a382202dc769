"""Causal convolutions as long as the sequence, exact for rows that hold several documents.

    y_t = sum over s <= t of the same document of k_{t-s} u_s

One FFT over a row would let documents leak into each other, and a mask cannot be put into it. Divide and conquer can: for a
row cut in two halves, what the left half gives to the right one comes from the left's last document alone and reaches only
those tokens of the right half that go on with it. So two masks round one FFT are exact, and the halves are rows themselves:

    y = direct products inside blocks of BLOCK tokens + sum over L = BLOCK, 2 BLOCK, 4 BLOCK, …: left L tokens -> right L tokens

in O(T log^2 T) work and log T steps. Nothing of a later half enters an earlier one's FFT: causality does not depend on rounding.
"""

import jax
import jax.numpy as jnp

from jaxseq.ops import _time

BLOCK = 8


def across(left_BSD: jax.Array, k_JD: jax.Array, time: int) -> jax.Array:
    """What S inputs give to the `time` tokens right after them: y_t = sum_s k_{S + t - s} left_s, taps past J being zero."""
    past, taps = left_BSD.shape[-2], k_JD.shape[0]
    reach, length = min(past, taps - 1), min(time, taps - 1)
    if min(reach, length) <= 0:
        return jnp.zeros((*left_BSD.shape[:-2], time, left_BSD.shape[-1]), left_BSD.dtype)
    left_BSD = left_BSD[..., past - reach :, :]
    size = 1 << (reach + length - 1).bit_length()  # the circle holds all that is read; what wraps round falls outside of it
    k_JD = k_JD[: reach + length]
    spectrum = jnp.fft.rfft(left_BSD, n=size, axis=-2) * jnp.fft.rfft(k_JD, n=size, axis=0)
    y_BTD = jnp.fft.irfft(spectrum, n=size, axis=-2)[..., reach : reach + length, :]
    return jnp.pad(y_BTD, [(0, 0)] * (y_BTD.ndim - 2) + [(0, time - length), (0, 0)])


def _cut(x: jax.Array, size: int, fill=0) -> jax.Array:
    """[B, T, ...] -> [B, T / size, size, ...], filled up at the end."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size)) + ((0, 0),) * (x.ndim - 2), constant_values=fill)
    return x.reshape(x.shape[0], -1, size, *x.shape[2:])


def _direct(u_BTD, k_JD, seg_BT):
    """Inside blocks of BLOCK tokens: one shifted product a tap."""
    time = u_BTD.shape[1]
    block = min(BLOCK, time)
    u_BXCD, seg_BXC = _cut(u_BTD, block), _cut(seg_BT, block, -1)
    past_BXCD = jnp.pad(u_BXCD, ((0, 0), (0, 0), (block - 1, 0), (0, 0)))
    past_BXC = jnp.pad(seg_BXC, ((0, 0), (0, 0), (block - 1, 0)), constant_values=-2)  # of no document
    y_BXCD = jnp.zeros_like(u_BXCD)
    for j in range(min(block, k_JD.shape[0])):
        reach = slice(block - 1 - j, 2 * block - 1 - j)
        y_BXCD += k_JD[j] * _time.select(past_BXC[:, :, reach] == seg_BXC, past_BXCD[:, :, reach])
    return y_BXCD.reshape(u_BXCD.shape[0], -1, u_BXCD.shape[3])[:, :time]


def causal(u_BTD: jax.Array, k_JD: jax.Array, seg_BT: jax.Array) -> jax.Array:
    """The convolution of each channel with its filter of J taps, J >= 1, inside the documents that `seg_BT` numbers.

    Where no row holds a border of documents, which is looked up when the program runs, one FFT of the rows does it.
    Padding must be zero already, and everything in the accumulation dtype. T >= 1.
    """
    if u_BTD.shape[1] <= BLOCK:
        return _direct(u_BTD, k_JD, seg_BT)
    return jax.lax.cond(jnp.all(seg_BT == seg_BT[:, :1]), _whole, _divided, u_BTD, k_JD, seg_BT)


def _whole(u_BTD, k_JD, seg_BT):
    time = u_BTD.shape[1]
    k_JD = k_JD[:time]
    size = 1 << (time + k_JD.shape[0] - 2).bit_length()
    return jnp.fft.irfft(jnp.fft.rfft(u_BTD, n=size, axis=1) * jnp.fft.rfft(k_JD, n=size, axis=0), n=size, axis=1)[:, :time]


def _divided(u_BTD, k_JD, seg_BT):
    time, taps = u_BTD.shape[1], k_JD.shape[0]
    y_BTD, size = _direct(u_BTD, k_JD, seg_BT), BLOCK
    while size < time:
        u_BXLD, seg_BXL = _cut(u_BTD, 2 * size), _cut(seg_BT, 2 * size, -1)
        near = min(size, taps - 1)  # no tap reaches further over the border
        left, right = slice(size - near, size), slice(size, size + near)
        own_BX1 = seg_BXL[:, :, size - 1 : size]  # the document that may go on
        u_BXND = _time.select(seg_BXL[:, :, left] == own_BX1, u_BXLD[:, :, left])
        gift_BXND = _time.select(seg_BXL[:, :, right] == own_BX1, across(u_BXND, k_JD, near))
        gift_BXLD = jnp.pad(gift_BXND, ((0, 0), (0, 0), (size, size - near), (0, 0)))
        y_BTD += gift_BXLD.reshape(u_BTD.shape[0], -1, u_BTD.shape[2])[:, :time]
        size *= 2
    return y_BTD
