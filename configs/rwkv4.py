"""RWKV-4: attention without queries, a decaying weighted mean of the past (Peng et al. 2023, arXiv:2305.13048).

Claim: Transformer quality at equal size with a state of five vectors a layer and no matrix products over time.
Expected: between RetNet and Mamba at the laptop size.
Command: jaxseq train --config=rwkv4 --workdir=runs/rwkv4
"""

from ml_collections import ConfigDict

from jaxseq.config import pick
from jaxseq.configs import _rwkv

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
    layers, width, lr = pick(SIZES, size, (4, 128, 3e-3))
    vocab = 50277 if size else None  # GPT-NeoX's
    return _rwkv.frame(f"{layers}*(rwkv4 rwkv_channel)", width, lr, vocab, "RWKV appendix H")
