"""Sequence ops, one file per op: pure functions over time, each implemented in several equivalent forms.

A file defines `FORMS = {"recurrent": …, "parallel": …, "chunkwise": …}` and `example(key, batch, time, dtype) -> Example`. A form
is `form(*xs, state=None, pos=None, **weights, **options) -> (y, state)`. xs and y are arrays [B, T, ...] and T may be 0.
`state=None` is the empty state. `pos` marks document starts and padding, see `time`. An op that has no parallel or chunkwise
form leaves it out of FORMS. `jaxseq new NAME` writes a complete op to start from.

Helpers for a new op:

    time      positions (START, PAD), masks, dtypes, and the loops of the recurrent and chunkwise forms
    Example   what `example` returns
    stresses  builds the hard inputs that `stress(key, batch, time, dtype)` returns from an example
"""

from jaxseq.ops import _time as time
from jaxseq.ops._example import Example, stresses

__all__ = ["Example", "stresses", "time"]
