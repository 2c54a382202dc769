"""LSTM: gates that look at the state (Hochreiter & Schmidhuber 1997), in today's residual blocks at the laptop size.

Claim: the recurrent network of twenty years; its state is small and its gates wait for it, so that a sequence is one long loop or
a Newton iteration (arXiv:2309.12252).
Expected: better than the linear recurrences at tracking a state, behind them in bits a byte for the same seconds.
Command: jaxseq train --config=lstm --workdir=runs/lstm
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick

# name: layers, width, dropout; Zaremba et al. 2014 (arXiv:1409.2329), §4.1: Penn Treebank's words, plain layers of one head
SIZES = {
    "medium": (2, 650, 0.5),
    "large": (2, 1500, 0.65),
}


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width, dropout = pick(SIZES, size, (4, 128, 0.0))
    config.model.stack = f"{layers}*(lstm)" if size else f"{layers}*(lstm swiglu)"
    config.model.width = width
    config.model.lstm = {"heads": 1 if size else 8}  # small heads make Newton's iterations affordable
    if size:
        config.model.vocab = 10000
        config.model.dropout = dropout
        config.model.tied = False
        config.train.length = 35
        config.train.batch = 20
        config.train.clip = 5.0 if size == "medium" else 10.0
    config.train.lr = 1e-3 if size else 3e-3
    config.train.lr_source = "ours for AdamW; the paper runs SGD from 1.0" if size else "the Transformer's at this size"
    return config
