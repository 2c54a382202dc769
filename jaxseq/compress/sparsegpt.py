"""Zeros where they cost least, with the other weights adjusted (SparseGPT, Frantar & Alistarh 2023, arXiv:2301.00774, alg. 1):
sparsegpt:0.5, or sparsegpt:2:4.

Departure: all layers are observed in one pass of the dense model, not one after another in the pruned one.
"""

import numpy as np

from jaxseq.compress import _prune
from jaxseq.compress._prune import Pattern
from jaxseq.compress._work import Work

BLOCK = 128  # inputs whose zeros are chosen together
DAMPING = 0.01  # of the Hessian, as a fraction of its mean diagonal


def apply(work: Work, argument: str) -> Work:
    """A share of each matrix of the blocks zero, or N:M."""
    pattern = Pattern.of(argument, "sparsegpt")
    return _prune.apply(work, pattern, lambda w_IO, gram_II: solve(w_IO, gram_II, pattern), calibrated=True)


def solve(w_IO: np.ndarray, gram_II: np.ndarray, pattern: Pattern) -> np.ndarray:
    """A matrix with this pattern of zeros whose outputs are close to those of w on inputs with this Gram matrix x^T x.

    Inputs are pruned in order; the error of each is distributed over the later ones by the inverse Hessian. Zeros are chosen in
    blocks (of M inputs for the pattern N:M), where w^2 / diag(H^-1)^2 is smallest.
    """
    w_IO, size = w_IO.astype(np.float64), len(w_IO)
    step = pattern.block or BLOCK
    hessian_II = np.array(gram_II, np.float64)
    dead_I = np.diagonal(hessian_II) == 0  # never active: nothing depends on them
    hessian_II[dead_I, dead_I] = 1
    hessian_II[np.arange(size), np.arange(size)] += DAMPING * np.mean(np.diagonal(hessian_II))
    upper_II = np.linalg.cholesky(np.linalg.inv(hessian_II)).T  # H^-1 = U^T U
    for start in range(0, size, step):
        stop = min(start + step, size)
        own = slice(start, stop)
        scale_I = np.diagonal(upper_II)[own]
        zeros_IO = pattern.zeros(np.square(w_IO[own] / scale_I[:, None]), per_output=False)
        error_IO = np.zeros_like(w_IO[own])
        for i in range(start, stop):
            error_IO[i - start] = np.where(zeros_IO[i - start], w_IO[i], 0) / upper_II[i, i]
            w_IO[i:stop] -= upper_II[i, i:stop, None] * error_IO[i - start]
            w_IO[i][zeros_IO[i - start]] = 0
        w_IO[stop:] -= upper_II[own, stop:].T @ error_IO
    return w_IO
