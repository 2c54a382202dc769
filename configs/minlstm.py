"""minLSTM: an LSTM whose gates do not look at the state, so that it is one associative scan (Feng et al. 2024, arXiv:2410.01201).

Claim: what made the LSTM slow, gates that wait for the state, was hardly needed.
Expected: behind the gated linear recurrences with larger states (Mamba, RWKV) at the laptop size, at fewer seconds a token.
Initial values: the Transformer's; inside the layer see `jaxseq.mixers.minlstm`.
Command: jaxseq train --config=minlstm --workdir=runs/minlstm
minGRU: jaxseq train --config=minlstm --config.model.stack="4*(mingru swiglu)" --workdir=runs/mingru
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width = pick({}, size, (4, 128))  # the paper publishes no sizes of a language model
    config.model.stack = f"{layers}*(minlstm swiglu)"
    config.model.width = width
    config.train.update(swept("minlstm"))
    return config
