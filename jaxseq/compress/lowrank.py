"""Replaces each matrix of the blocks by a product of two with this fraction of its parameters: lowrank:0.5.

W [I, O] becomes A B of rank R = share * I O / (I + O), the product with the smallest error of the outputs X W on calibration data
(as SVD-LLM, Wang et al. 2024, arXiv:2403.07378, §3): with X^T X = C^T C and the R largest singular values in C W ≈ U S V^T,
A = C^-1 U sqrt(S) and B = sqrt(S) V^T.
"""

import jax.numpy as jnp
import numpy as np

from jaxseq import weights
from jaxseq.compress._work import Kernel, Work, share
from jaxseq.errors import UserError
from jaxseq.weights import Factored

SMALLEST = 1e-6  # smallest eigenvalue of X^T X, as a fraction of the largest: sums in float32 are not more precise


def apply(work: Work, argument: str) -> Work:
    """The model with its matrices factored. Embeddings, heads and matrices too small for rank 1 are not changed."""
    wanted = share(argument, "lowrank")
    grams = work.calibration.grams(work.config, work.params)
    new, left = {}, {path: "it multiplies no activation" for path in work.others()}
    for kernel in work.kernels():
        if work.is_sparse(kernel):
            raise UserError("lowrank would fill in the zeros of an earlier step; put lowrank before pruning in the recipe")
        if kernel.is_table or kernel.path not in grams:
            left[kernel.path] = "embeddings and heads are not factored" if kernel.is_table else "its inputs are not observed"
            continue
        _, inputs, outputs = kernel.matrices.shape
        if not (rank := int(wanted * inputs * outputs / (inputs + outputs))):
            left[kernel.path] = "it is too small for a factor of rank 1"
            continue
        work.say(f"factoring {kernel.path}, rank {rank}")
        new[kernel.path] = f"factored:{rank}", _factored(kernel, grams[kernel.path], rank)
    return work.typed(new, left)


def _factored(kernel: Kernel, gram_NII: np.ndarray, rank: int) -> Factored:
    parts = [factors(w_IO, gram_II, rank) for w_IO, gram_II in zip(kernel.matrices, gram_NII, strict=True)]
    boxes = weights.factors(kernel.box, rank)
    a, b = (np.stack(part).reshape(box.value.shape) for part, box in zip(zip(*parts, strict=True), boxes, strict=True))
    return Factored(jnp.asarray(a, kernel.array.dtype), jnp.asarray(b, kernel.array.dtype), len(kernel.box.contracts))


def factors(w_IO: np.ndarray, gram_II: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """A [I, R] and B [R, O] for inputs with this Gram matrix, with equal norms."""
    values_I, basis_II = np.linalg.eigh(gram_II)
    root_I = np.sqrt(np.maximum(values_I, SMALLEST * max(values_I[-1], 1e-30)))
    u, s, v = np.linalg.svd((root_I[:, None] * basis_II.T) @ w_IO.astype(np.float64), full_matrices=False)
    half = np.sqrt(s[:rank])
    return basis_II @ (u[:, :rank] * half / root_I[:, None]), half[:, None] * v[:rank]
