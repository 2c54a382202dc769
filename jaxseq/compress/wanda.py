"""Sets w_ij to zero where |w_ij| |x_i| is smallest among the inputs i of an output j (Wanda,
Sun et al. 2023, arXiv:2306.11695, eq. 1): wanda:0.5, or wanda:2:4.

|x_i| is the norm of input i over calibration data. Departure: the inputs of all layers come from one pass of the dense model, not
layer by layer from the pruned model.
"""

import numpy as np

from jaxseq.compress import _prune
from jaxseq.compress._work import Work


def apply(work: Work, argument: str) -> Work:
    """Prunes a share of each output's weights in the blocks, or with N:M keeps N of each M consecutive inputs."""
    pattern = _prune.Pattern.of(argument, "wanda")

    def solve(w_IO, gram_II):
        norm_I = np.sqrt(np.diagonal(gram_II))
        return np.where(pattern.zeros(np.abs(w_IO) * norm_I[:, None], per_output=True), 0, w_IO)

    return _prune.apply(work, pattern, solve, calibrated=True)
