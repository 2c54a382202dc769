"""Sequence ops, one file per op: pure functions over time, each implemented in several equivalent forms.

A file defines `FORMS = {"recurrent": …, "parallel": …, "chunkwise": …}` and `example(key, batch, time, dtype) -> Example`. A form
is `form(*xs, state=None, pos=None, **weights, **options) -> (y, state)`. xs and y are arrays [B, T, ...] and T may be 0.
`state=None` is the empty state. `pos` marks document starts and padding, see `time`. An op that has no parallel or chunkwise
form leaves it out of FORMS. `CUT` says what is passed between the segments of a split sequence:

    affine    the state after a segment is an affine function of the state before it, so all segments can be computed at once and
              then combined; most such ops have `summary`, `combine` and `apply`
    halo      the last few inputs
    overlap   the last W - 1 inputs, for a filter of W taps
    ring      the last keys and values, or all of them
    serial    the state; each segment has to wait for the one before it

`jaxseq new NAME` writes a complete op to start from.

Helpers for a new op:

    time      positions (START, PAD), masks, dtypes, and the loops of the recurrent and chunkwise forms
    Example   what `example` returns
    stresses  builds the hard inputs that `stress(key, batch, time, dtype)` returns from an example
"""

from jaxseq.ops import _time as time
from jaxseq.ops._example import Example, stresses

__all__ = ["Example", "stresses", "time"]
