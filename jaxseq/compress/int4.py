"""Weights in 4-bit integers, one scale per group of at most 64 inputs: w = scale * code with scale = max|w| / 7.5."""

from jaxseq.compress import _quantize
from jaxseq.compress._work import Work


def apply(work: Work, argument: str) -> Work:
    """All matrices quantized; no argument."""
    return _quantize.apply(work, argument, "int4")
