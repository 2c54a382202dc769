"""Fewer hidden channels in each MLP, RWKV channel mix and Mamba: channels:0.25 removes a quarter of them.

In each layer, those that contribute least to the output on calibration data are removed.
"""

from jaxseq.compress import _units
from jaxseq.compress._work import Work, share


def apply(work: Work, argument: str) -> Work:
    """A smaller model; the fields of its config change with it."""
    return _units.apply(work, "channels", share(argument, "channels"))
