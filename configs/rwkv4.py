"""RWKV-4: attention without queries, a decaying weighted mean of the past (Peng et al. 2023, arXiv:2305.13048).

Claim: Transformer quality at equal size with a state of five vectors per layer and no matrix products over time.
Expected: between RetNet and Mamba at the laptop size.
Initial values: BlinkDL/RWKV-LM, RWKV-v4neo/src/model.py, and the optimiser of its train.py: no weight decay, eps 1e-8.
Command: jaxseq train --config=rwkv4 --workdir=runs/rwkv4
"""

from ml_collections import ConfigDict

from jaxseq.config import pick
from jaxseq.configs import _rwkv
from jaxseq.configs._rates import swept

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
    layers, width, lr = pick(SIZES, size, (4, 128, None))
    vocab = 50277 if size else None  # GPT-NeoX's
    rate = {"lr": lr, "lr_source": "RWKV appendix H"} if size else swept("rwkv4")
    config = _rwkv.frame(f"{layers}*(rwkv4 rwkv_channel)", width, rate, vocab)
    config.model.embedding_std = (lr or 3e-3) / 3**0.5  # U(-lr, lr); fixed for the laptop size, because a sweep varies lr
    config.model.rwkv_channel = {"key_gain": 2.0}  # sqrt(hidden / width)
    config.train.eps, config.train.weight_decay = 1e-8, 0.0
    return config
