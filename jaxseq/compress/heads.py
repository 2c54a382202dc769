"""Fewer heads in each attention: heads:0.25 removes a quarter of them.

In each layer, those that contribute least to the output on calibration data are removed. A key/value head is removed with all its
query heads.
"""

from jaxseq.compress import _units
from jaxseq.compress._work import Work, share


def apply(work: Work, argument: str) -> Work:
    """A smaller model; the fields of its config change with it."""
    return _units.apply(work, "heads", share(argument, "heads"))
