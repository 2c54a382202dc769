"""Structural re-parameterisation of large kernels (UniRepLKNet, Ding et al. 2023, arXiv:2311.15599, §3.1), in any dimension.

A large kernel is trained in parallel with small dilated ones. Convolution is linear, so after training all of them can be merged
into one kernel: insert zeros between the taps of the small kernels and add them to the large one.
"""

import jax
import jax.numpy as jnp

from jaxseq.errors import UserError
from jaxseq.ops import _time

# kernel: ((taps, dilation) of each branch, …); the paper's appendix for 17 to 7, the released code for 5
BRANCHES = {
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    7: ((5, 1), (3, 2), (3, 3)),
    5: ((3, 1), (3, 2)),
}
TINY = 1e-30  # added under a square root, so that the gradient is zero instead of NaN where all inputs are zero


def branches(kernel: int) -> tuple[tuple[int, int], ...]:
    """(taps, dilation) of the branches parallel to a kernel of this size. Raises UserError for a size not in the paper."""
    if kernel not in BRANCHES:
        raise UserError(f"a kernel of {kernel} taps has no dilated branches; choose one of: {', '.join(map(str, BRANCHES))}")
    return BRANCHES[kernel]


def spread(kernel: jax.Array, dilation: int, size: int, axes: int, first: int = 0) -> jax.Array:
    """Dilated kernel with `size` taps on the first `axes` axes: the taps of `kernel` from index `first` on, `dilation` apart.

    All other taps are zero. first: 0 for a causal kernel, whose tap 0 is the current token; `centre(...)` for a symmetric one.
    """

    def around(taps: int) -> tuple[int, int, int]:
        return first, size - first - dilation * (taps - 1) - 1, dilation - 1

    config = [around(taps) for taps in kernel.shape[:axes]] + [(0, 0, 0)] * (kernel.ndim - axes)
    return jax.lax.pad(kernel, jnp.zeros((), kernel.dtype), config)


def centre(taps: int, dilation: int, size: int) -> int:
    """The `first` of `spread` that aligns the middle taps of both kernels."""
    return size // 2 - (dilation * (taps - 1) + 1) // 2


def respond(x: jax.Array, square: jax.Array, gamma: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Global response normalisation without its bias: (gamma N + 1) x, N = G / (mean over channels of G + eps).

    G is the norm of each channel over all positions (Woo et al. 2023, arXiv:2301.00808, eq. 1 to 3). `square` is G^2, or G^2
    times a factor common to all channels, in the accumulation dtype.
    """
    g = jnp.sqrt(jnp.maximum(square, TINY))
    n = g / (jnp.mean(g, axis=-1, keepdims=True) + eps)
    return ((gamma * n + 1) * x.astype(_time.accumulation_dtype(x))).astype(x.dtype)
