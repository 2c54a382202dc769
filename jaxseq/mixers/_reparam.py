"""Structural re-parameterisation of large kernels (UniRepLKNet, Ding et al. 2023, arXiv:2311.15599, §3.1), in any dimension.

A large kernel is trained beside small ones whose taps lie some steps apart. Convolution is linear: spread out with zeros between
their taps, the small kernels add up with the large one to a single kernel that computes the same.
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
TINY = 1e-30  # under a root: where all is zero the gradient is zero too


def branches(kernel: int) -> tuple[tuple[int, int], ...]:
    """(taps, dilation) of what stands beside a kernel of this size. Raises UserError where the paper has none."""
    if kernel not in BRANCHES:
        raise UserError(f"a kernel of {kernel} taps has no dilated branches; choose one of: {', '.join(map(str, BRANCHES))}")
    return BRANCHES[kernel]


def spread(kernel: jax.Array, dilation: int, size: int, axes: int, first: int = 0) -> jax.Array:
    """A kernel whose first `axes` axes have `size` taps: those of `kernel`, `dilation` apart from tap `first` on, else zero.

    first: 0 for a causal kernel, whose tap 0 is the current token; `centre(...)` for one that looks to both sides.
    """

    def around(taps: int) -> tuple[int, int, int]:
        return first, size - first - dilation * (taps - 1) - 1, dilation - 1

    config = [around(taps) for taps in kernel.shape[:axes]] + [(0, 0, 0)] * (kernel.ndim - axes)
    return jax.lax.pad(kernel, jnp.zeros((), kernel.dtype), config)


def centre(taps: int, dilation: int, size: int) -> int:
    """`first` for which the middle taps of both kernels meet."""
    return size // 2 - (dilation * (taps - 1) + 1) // 2


def respond(x: jax.Array, square: jax.Array, gamma: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Global response normalisation without its bias: (gamma N + 1) x, N = G / (mean over channels of G + eps).

    G is the norm of each channel over all positions (Woo et al. 2023, arXiv:2301.00808, eq. 1 to 3); `square` is its square,
    or any multiple of it that all channels share, in the accumulation dtype.
    """
    g = jnp.sqrt(jnp.maximum(square, TINY))
    n = g / (jnp.mean(g, axis=-1, keepdims=True) + eps)
    return ((gamma * n + 1) * x.astype(_time.accumulation_dtype(x))).astype(x.dtype)
