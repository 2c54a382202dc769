"""Shared by the quantization steps."""

from jaxseq import weights
from jaxseq.compress._work import Work, none
from jaxseq.weights import QuantizedWeight


def apply(work: Work, argument: str, kind: str) -> Work:
    """The model with all its matrices quantized, embeddings and heads included."""
    none(argument, kind)
    new, left = {}, {path: "it multiplies no activation" for path in work.others()}
    for kernel in work.kernels():
        if weights.fits(kernel.box, kind):
            new[kernel.path] = kind, QuantizedWeight.of(kernel.array, kind, kernel.box.contracts)
        else:
            left[kernel.path] = f"{kind} needs an even number of inputs"
    return work.typed(new, left)
