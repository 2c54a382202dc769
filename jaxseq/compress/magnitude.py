"""Sets the smallest weights of each matrix to zero (Han et al. 2015, arXiv:1506.02626): magnitude:0.5, or magnitude:2:4."""

import numpy as np

from jaxseq.compress import _prune
from jaxseq.compress._work import Work


def apply(work: Work, argument: str) -> Work:
    """Prunes a share of each matrix of the blocks, or with N:M keeps N of each M consecutive inputs of an output."""
    pattern = _prune.Pattern.of(argument, "magnitude")

    def solve(w_IO, gram_II):
        return np.where(pattern.zeros(np.abs(w_IO), per_output=False), 0, w_IO)

    return _prune.apply(work, pattern, solve, calibrated=False)
