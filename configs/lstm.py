"""LSTM: gates that depend on the state (Hochreiter & Schmidhuber 1997), in modern residual blocks at the laptop size.

Claim: the standard recurrent network for twenty years. Its state is small. Because the gates depend on the state, a sequence
takes a sequential loop or a Newton iteration (arXiv:2309.12252).
Expected: better than linear recurrences at state tracking, behind them in bits per byte at equal training time.
Initial values: the Transformer's; for the layer itself see `jaxseq.mixers.lstm`.
Command: jaxseq train --config=lstm --workdir=runs/lstm
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width = pick({}, size, (4, 128))  # the models of the papers have no residual stream and no projection
    config.model.stack = f"{layers}*(lstm swiglu)"
    config.model.width = width
    config.model.lstm = {"heads": 8}  # small heads make Newton iterations affordable
    config.train.update(swept("lstm"))
    return config
