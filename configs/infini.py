"""Infini-Transformer: attention to segments and a memory of all earlier ones (Munkhdalai et al. 2024, arXiv:2404.07143).

Claim: books of 500k tokens with a state of fixed size, 114 times smaller than a Memorizing Transformer's.
Expected: between the Transformer and one with a window at the laptop size.
Initial values: the defaults.
Command: jaxseq train --config=infini --workdir=runs/infini
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width = pick({}, size, (4, 128))  # the paper's sizes are 12 layers of width 1024, and LLMs that are not released
    config.model.stack = f"{layers}*(infini_attention swiglu)"
    config.model.width = width
    config.model.infini_attention = {"heads": 4, "segment": 64}
    config.train.update(swept("transformer") | {"lr_source": "the Transformer's"})
    return config
