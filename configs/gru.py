"""GRU: two gates and no second state (Cho et al. 2014, arXiv:1406.1078), in modern residual blocks.

Claim: as good as an LSTM with three quarters of its parameters (Chung et al. 2014, arXiv:1412.3555).
Expected: on par with the LSTM at the laptop size.
Initial values: the Transformer's; for the layer itself see `jaxseq.mixers.gru`.
Command: jaxseq train --config=gru --workdir=runs/gru
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width = pick({}, size, (4, 128))  # the papers publish no language models
    config.model.stack = f"{layers}*(gru swiglu)"
    config.model.width = width
    config.model.gru = {"heads": 8}  # small heads make Newton's iterations affordable
    config.train.update(swept("gru"))
    return config
