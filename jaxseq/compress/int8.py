"""Weights in 8-bit integers, one scale per output: w = scale * code with scale = max|w| / 127.5 over the inputs."""

from jaxseq.compress import _quantize
from jaxseq.compress._work import Work


def apply(work: Work, argument: str) -> Work:
    """All matrices quantized; no argument."""
    return _quantize.apply(work, argument, "int8")
