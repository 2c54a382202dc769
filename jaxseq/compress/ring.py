"""Attention's keys and values in the state as 8-bit integers, with a scale per token and head: ring:int8.

Parameters do not change; the state of a long context takes about a quarter of its bytes in float32.
"""

from jaxseq.compress._work import Work
from jaxseq.errors import UserError
from jaxseq.mixers.attention import RINGS, Attention
from jaxseq.models import _stack


def apply(work: Work, argument: str) -> Work:
    """The same model with `ring` set in each mixer that has it; others with a state are named."""
    if argument not in RINGS or not argument:
        raise UserError(f"ring:{argument} is unknown; write ring:int8")
    if "stack" not in work.config.model:
        raise UserError(f"a {work.config.model.kind} keeps no keys and values between calls, so leave ring out")
    fields, left = {}, {}
    for n, (block, segment) in enumerate(zip(work.model.blocks, _stack.parse(work.config.model.stack), strict=True)):
        for mixer, label in zip(block.mixers, segment.labels, strict=True):
            why = mixer.why_no_ring() if isinstance(mixer, Attention) else f"{type(mixer).__name__} has no ring"
            if why and mixer.init_state(1, 1) != ():
                left[f"blocks_{n}/{mixer.name}"] = why
            elif not why:
                fields[f"model.{label}.ring"] = argument
    if not fields:
        raise UserError(f"ring:{argument} changes nothing of this model ({'; '.join(sorted(set(left.values())))}); leave it out")
    return work.configured(fields).replaced({}, left)
