"""Sequence maps, one file an op: pure functions over time, the same function in several forms.

A file has `FORMS = {"recurrent": …, "parallel": …, "chunkwise": …}` and `example(key, batch, time, dtype) -> Example`. A form
is `form(*xs, state=None, pos=None, **weights, **options) -> (y, state)`: xs and y are arrays [B, T, ...], `state=None` is the
state of no tokens, T may be 0, and `pos` says where documents start and what is padding, see `time`. A form that the
mathematics does not give is left out. `jaxseq new NAME` writes a complete op to begin with.

What a new op needs is here:

    time      positions (START, PAD), masks, dtypes, and the loops of the recurrent and chunkwise forms
    Example   what `example` returns
    stresses  makes `stress(key, batch, time, dtype)`, the hard inputs, from an example
"""

from jaxseq.ops import _time as time
from jaxseq.ops._example import Example, stresses

__all__ = ["Example", "stresses", "time"]
