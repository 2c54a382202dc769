"""Fewer heads in each attention: heads:0.25 removes a quarter of them, with their queries if several share keys and values.

In each layer those go that add the least to the output on calibration data.
"""

from jaxseq.compress import _units
from jaxseq.compress._work import Work, share


def apply(work: Work, argument: str) -> Work:
    """A smaller model; the fields of its config change with it."""
    return _units.apply(work, "heads", share(argument, "heads"))
