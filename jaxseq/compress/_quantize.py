"""Shared by the quantization steps."""

from jaxseq import weights
from jaxseq.compress._calibration import observed
from jaxseq.compress._work import Work, none
from jaxseq.weights import CODES, QuantizedWeight


def apply(work: Work, argument: str, kind: str) -> Work:
    """The model with all its matrices quantized, embeddings and heads included."""
    none(argument, kind)
    new, left = {}, {path: "it multiplies no activation" for path in work.others()}
    maps = observed(work.model) if CODES[kind].activations else None
    for kernel in work.kernels():
        own = kind
        if maps is not None and not any(f"{kernel.path}/".startswith(f"{path}/") for path in maps):
            own, left[kernel.path] = "int8", "it is no linear map, so its weights have 8 bits, but not what they multiply"
        if weights.fits(kernel.box, own):
            new[kernel.path] = own, QuantizedWeight.of(kernel.array, own, kernel.box.contracts)
        else:
            left[kernel.path] = f"{kind} needs an even number of inputs"
    return work.typed(new, left)
