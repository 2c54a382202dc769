"""Sets weights to zero where this costs least, and adjusts the others (SparseGPT, Frantar & Alistarh 2023, arXiv:2301.00774,
alg. 1): sparsegpt:0.5, or sparsegpt:2:4.

Departure: the inputs of all layers come from one pass of the dense model, not layer by layer from the pruned model.
"""

import numpy as np

from jaxseq.compress import _prune
from jaxseq.compress._prune import Pattern
from jaxseq.compress._work import Work

BLOCK = 128  # inputs whose zeros are chosen together
DAMPING = 0.01  # of the Hessian, as a fraction of its mean diagonal


def apply(work: Work, argument: str) -> Work:
    """Prunes a share of each matrix of the blocks, or with N:M keeps N of each M consecutive inputs of an output."""
    pattern = Pattern.of(argument, "sparsegpt")
    return _prune.apply(work, pattern, lambda w_IO, gram_II: solve(w_IO, gram_II, pattern), calibrated=True)


def solve(w_IO: np.ndarray, gram_II: np.ndarray, pattern: Pattern) -> np.ndarray:
    """w with this pattern of zeros, adjusted so that its outputs change little on inputs with the Gram matrix x^T x.

    Inputs are pruned in order; the error of each is distributed over the later ones by the inverse Hessian. Zeros are chosen in
    blocks (of M inputs for the pattern N:M), where w^2 / diag(U)^2 is smallest, with H^-1 = U^T U.
    """
    w_IO, size = w_IO.astype(np.float64), len(w_IO)
    step = pattern.block or BLOCK
    hessian_II = np.array(gram_II, np.float64)
    dead_I = np.diagonal(hessian_II) == 0  # inputs that are always zero
    hessian_II[dead_I, dead_I] = 1
    hessian_II[np.arange(size), np.arange(size)] += DAMPING * np.mean(np.diagonal(hessian_II))
    upper_II = np.linalg.cholesky(np.linalg.inv(hessian_II)).T
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
