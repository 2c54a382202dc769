"""LSTM: gates that look at the state (Hochreiter & Schmidhuber 1997), in today's residual blocks at the laptop size.

Claim: the recurrent network of twenty years; its state is small and its gates wait for it, so that a sequence is one long loop or
a Newton iteration (arXiv:2309.12252).
Expected: better than the linear recurrences at tracking a state, behind them in bits a byte for the same seconds.
Initial values: the Transformer's; inside the layer see `jaxseq.mixers.lstm`.
Command: jaxseq train --config=lstm --workdir=runs/lstm
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width = pick({}, size, (4, 128))  # the papers' models have neither residual stream nor projection
    config.model.stack = f"{layers}*(lstm swiglu)"
    config.model.width = width
    config.model.lstm = {"heads": 8}  # small heads make Newton's iterations affordable
    config.train.update(swept("lstm"))
    return config
