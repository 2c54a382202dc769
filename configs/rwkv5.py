"""RWKV-5.2 "Eagle": matrix-valued states that decay by channel (Peng et al. 2024, arXiv:2404.05892).

Claim: better than RWKV-4 at equal size for a state of one matrix a head.
Expected: between RetNet and Mamba at the laptop size.
Command: jaxseq train --config=rwkv5 --workdir=runs/rwkv5
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick

# name: layers, width, head_size, lr; §6 and appendix
SIZES = {
    "0.4b": (24, 1024, 64, 4e-4),
    "1.5b": (24, 2048, 64, 3e-4),
    "3b": (32, 2560, 64, 2e-4),
    "7b": (32, 4096, 64, 1.5e-4),
}


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width, head_size, lr = pick(SIZES, size, (4, 128, 16, 3e-3))
    config.model.stack = f"{layers}*(rwkv5 rwkv_channel)"
    config.model.width = width
    config.model.tied = False
    config.model.norm = "layernorm"
    config.model.embedding_norm = True
    config.model.embedding_std = 1e-4
    config.model.head_scale = 0.5
    config.model.logit_penalty = 1e-4
    config.model.rwkv5 = {"heads": width // head_size}
    if size:
        config.model.rwkv_channel = {"hidden": int(3.5 * width) // 32 * 32}
        config.model.vocab = 65536  # World
    config.train.lr = lr
    config.train.lr_source = "the released models'" if size else "the Transformer's: the paper gives none at this size"
    config.train.beta2 = 0.99
    return config
