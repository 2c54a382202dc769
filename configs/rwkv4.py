"""RWKV-4: attention without queries, a decaying weighted mean of the past (Peng et al. 2023, arXiv:2305.13048).

Claim: Transformer quality at equal size with a state of five vectors a layer and no matrix products over time.
Expected: between RetNet and Mamba at the laptop size.
Command: jaxseq train --config=rwkv4 --workdir=runs/rwkv4
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick

# name: layers, width, lr; table 2 and appendix H
SIZES = {
    "169m": (12, 768, 6e-4),
    "430m": (24, 1024, 4e-4),
    "1.5b": (24, 2048, 3e-4),
    "3b": (32, 2560, 1.5e-4),
    "7b": (32, 4096, 1.5e-4),
    "14b": (40, 5120, 1e-4),
}


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width, lr = pick(SIZES, size, (4, 128, 3e-3))
    config.model.stack = f"{layers}*(rwkv4 rwkv_channel)"
    config.model.width = width
    config.model.tied = False
    config.model.norm = "layernorm"
    config.model.embedding_norm = True
    config.model.embedding_std = 1e-4
    config.model.head_scale = 0.5
    config.model.logit_penalty = 1e-4
    if size:
        config.model.vocab = 50277  # GPT-NeoX's
    config.train.lr = lr
    config.train.lr_source = "RWKV appendix H" if size else "the Transformer's: the paper gives none at this size"
    config.train.beta2 = 0.99
    return config
