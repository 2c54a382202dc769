"""SRU: gates that depend on the state of their own channel only (Lei et al. 2018, arXiv:1709.02755), in modern residual blocks.

Claim: a recurrent network as parallel as a convolution; its elementwise recurrence is solved here by diagonal Newton iterations.
Expected: near minLSTM at the laptop size, with a highway connection instead of an output projection.
Initial values: the Transformer's; for the layer itself see `jaxseq.mixers.sru`.
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
