"""Weights in 8-bit floats (e4m3), one scale per output: the largest is 448 (Micikevicius et al. 2022, arXiv:2209.05433)."""

from jaxseq.compress import _quantize
from jaxseq.compress._work import Work


def apply(work: Work, argument: str) -> Work:
    """All matrices quantized; no argument."""
    return _quantize.apply(work, argument, "fp8")
