"""Weights in the 4-bit NormalFloat, one scale per group of at most 64 inputs (Dettmers et al. 2023, arXiv:2305.14314, §3)."""

from jaxseq.compress import _quantize
from jaxseq.compress._work import Work


def apply(work: Work, argument: str) -> Work:
    """All matrices quantized; no argument."""
    return _quantize.apply(work, argument, "nf4")
