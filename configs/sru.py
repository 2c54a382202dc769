"""SRU: gates that look at their own channel's state alone (Lei et al. 2018, arXiv:1709.02755), in today's residual blocks.

Claim: a recurrent network as parallel as a convolution; what is left to wait for costs a diagonal Newton iteration here.
Expected: near minLSTM at the laptop size, with a highway in the place of an output projection.
Initial values: the Transformer's; inside the layer see `jaxseq.mixers.sru`.
Command: jaxseq train --config=sru --workdir=runs/sru
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width = pick({}, size, (4, 128))
    config.model.stack = f"{layers}*(sru swiglu)"
    config.model.width = width
    config.train.update(swept("sru"))
    return config
