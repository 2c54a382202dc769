"""Gated linear attention: linear attention with a decay per key channel (Yang et al. 2023, arXiv:2312.06635).

Claim: competitive with the Transformer and Mamba at equal size, trains by matrix products, and extrapolates to long sequences.
Expected: between RetNet and Mamba-2 on the quick comparison.
Initial values: as in flash-linear-attention (models/gla): the same normal distribution for all matrices, here 1 / sqrt(inputs).
Command: jaxseq train --config=gla --workdir=runs/gla
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept

# name: layers, width, hidden (the authors' released models, 4 heads each; §5.1: learning rate 3e-4)
SIZES = {
    "340m": (24, 1024, 2816),
    "1.3b": (24, 2048, 5632),
}


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width, hidden = pick(SIZES, size, (4, 128, None))
    config.model.stack = f"{layers}*(gla swiglu)"
    config.model.width = width
    values = {"initial": "llama", "init_std": 0.02 if size else None}
    config.model.gla = {"heads": 4} | values
    config.model.swiglu = {"hidden": hidden} | values
    config.model.tied = False
    if size:
        config.model.vocab = 32000
        config.model.embedding_std, config.model.head_scale = 0.02, 0.02 * width**0.5
    config.train.update({"lr": 3e-4, "lr_source": "the paper's, §5.1"} if size else swept("gla"))
    return config
