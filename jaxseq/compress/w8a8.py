"""Weights and activations in 8-bit integers: each linear map is a product of integers, int8 x int8 -> int32.

Weights have one scale per output, as in `int8`. Activations are rounded where they are used, with one scale per token,
max|x| / 127 over its channels. Matrices that are used in another way (embeddings, heads, experts) have 8-bit weights only.
"""

from jaxseq.compress import _quantize
from jaxseq.compress._work import Work


def apply(work: Work, argument: str) -> Work:
    """All matrices quantized, and the activations that linear maps multiply; no argument."""
    return _quantize.apply(work, argument, "w8a8")
