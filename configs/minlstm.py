"""minLSTM: an LSTM whose gates do not depend on the state; computed by an associative scan (Feng et al. 2024, arXiv:2410.01201).

Claim: gates that depend on the state, which make the LSTM sequential, are hardly needed.
Expected: behind gated linear recurrences with larger states (Mamba, RWKV) at the laptop size, with less time per token.
Initial values: the Transformer's; for the layer itself see `jaxseq.mixers.minlstm`.
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
