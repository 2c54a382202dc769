"""Shared by the pruning steps: patterns of zeros, and the loop over matrices."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxseq.compress._work import Kernel, Work, share
from jaxseq.errors import UserError
from jaxseq.weights import Sparse

Solve = Callable[[np.ndarray, np.ndarray | None], np.ndarray]  # (matrix [I, O], Gram matrix [I, I] or None) -> pruned matrix


class Pattern(NamedTuple):
    """Which weights become zero: a share of all, or all but `keep` of each `block` consecutive inputs of an output."""

    share: float
    keep: int = 0
    block: int = 0

    @classmethod
    def of(cls, text: str, step: str) -> "Pattern":
        """The pattern of "0.5" or "2:4". Raises UserError for anything else."""
        if ":" not in text:
            return cls(share(text, step))
        parts = text.split(":")
        if len(parts) != 2 or not all(part.isdecimal() for part in parts) or not 0 < int(parts[0]) < int(parts[1]) <= 64:
            raise UserError(f"{step}:{text} is not a pattern N:M, which keeps N of each M weights; write it like {step}:2:4")
        keep, block = map(int, parts)
        return cls(1 - keep / block, keep, block)

    def zeros(self, score_IO: np.ndarray, per_output: bool) -> np.ndarray:
        """Where to put zeros, bool [I, O]: at the lowest scores of each output, or of the matrix."""
        if self.block:
            rows, outputs = score_IO.shape
            ranks = _ranks(score_IO.reshape(rows // self.block, self.block, outputs), 1)
            return (ranks < self.block - self.keep).reshape(rows, outputs)
        if per_output:
            return _ranks(score_IO, 0) < round(self.share * score_IO.shape[0])
        return (_ranks(score_IO.reshape(-1), 0) < round(self.share * score_IO.size)).reshape(score_IO.shape)

    def why_not(self, kernel: Kernel) -> str:
        """Why a kernel cannot have this pattern; empty if it can."""
        inputs = kernel.matrices.shape[1]
        return f"{inputs} inputs are not a multiple of {self.block}" if self.block and inputs % self.block else ""


def _ranks(x: np.ndarray, axis: int) -> np.ndarray:
    """The rank of each element in ascending order along an axis; equal elements keep their order."""
    return np.argsort(np.argsort(x, axis, kind="stable"), axis, kind="stable")


def apply(work: Work, pattern: Pattern, solve: Solve, calibrated: bool) -> Work:
    """The model with each matrix of its blocks pruned by `solve`. Embeddings and heads are not pruned, as in the papers."""
    grams = work.calibration.grams(work.config, work.params) if calibrated else {}
    new, left, again = {}, {path: "it multiplies no activation" for path in work.others()}, {}
    for kernel in work.kernels():
        sparse = work.is_sparse(kernel)
        path = kernel.path.removesuffix("/w") if sparse else kernel.path
        reason = "embeddings and heads are not pruned" if kernel.is_table else pattern.why_not(kernel)
        if not reason and calibrated and path not in grams:
            reason = "its inputs are not observed"
        if reason:
            left[kernel.path] = reason
            continue
        work.say(f"pruning {kernel.path}")
        found = [solve(w_IO, grams[path][i] if calibrated else None) for i, w_IO in enumerate(kernel.matrices)]
        array = np.stack(found).reshape(kernel.array.shape).astype(kernel.array.dtype)
        if sparse:
            again[kernel.path] = array
        else:
            new[kernel.path] = "sparse", Sparse(array)
    return work.replaced(again, left) if again and not new else work.typed(new, left).replaced(again, {})
