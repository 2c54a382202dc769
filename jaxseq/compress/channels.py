"""Fewer hidden channels in each MLP and each Mamba: channels:0.25 removes a quarter of them.

In each layer those go that add the least to the output on calibration data.
"""

from jaxseq.compress import _units
from jaxseq.compress._work import Work, share


def apply(work: Work, argument: str) -> Work:
    """A smaller model; the fields of its config change with it."""
    return _units.apply(work, "channels", share(argument, "channels"))
