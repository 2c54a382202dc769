"""RWKV-5.2 "Eagle": matrix-valued states that decay by channel (Peng et al. 2024, arXiv:2404.05892).

Claim: better than RWKV-4 at equal size, with a larger state of one matrix per head.
Expected: between RetNet and Mamba at the laptop size.
Initial values: as in the released code, including the layer scale of norms; see configs/_rwkv.py.
Command: jaxseq train --config=rwkv5 --workdir=runs/rwkv5
"""

from ml_collections import ConfigDict

from jaxseq.config import pick
from jaxseq.configs import _rwkv
from jaxseq.configs._rates import swept

# name: layers, width, head_size, lr; §6 and appendix
SIZES = {
    "0.4b": (24, 1024, 64, 4e-4),
    "1.5b": (24, 2048, 64, 3e-4),
    "3b": (32, 2560, 64, 2e-4),
    "7b": (32, 4096, 64, 1.5e-4),
}


def get_config(size: str = "") -> ConfigDict:
    layers, width, head_size, lr = pick(SIZES, size, (4, 128, 16, None))
    vocab = 65536 if size else None  # World
    rate = {"lr": lr, "lr_source": "the released models'"} if size else swept("rwkv5")
    config = _rwkv.frame(f"{layers}*(rwkv5 rwkv_channel)", width, rate, vocab)
    config.model.rwkv5 = {"heads": width // head_size}
    config.model.rwkv_channel = {"hidden": int(3.5 * width) // 32 * 32} if size else {}
    return config
