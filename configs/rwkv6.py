"""RWKV-6 "Finch": RWKV-5 with decays and mixtures that depend on the token (Peng et al. 2024, arXiv:2404.05892).

Claim: data-dependent decay closes most of the gap to attention on recall, with the state size of RWKV-5.
Expected: near RWKV-5 on the quick comparison, between RetNet and Mamba.
Initial values: as in the released code, including the layer scale of norms; see configs/_rwkv.py.
Command: jaxseq train --config=rwkv6 --workdir=runs/rwkv6
"""

from ml_collections import ConfigDict

from jaxseq.config import pick
from jaxseq.configs import _rwkv
from jaxseq.configs._rates import swept

# name: layers, width, head_size, mix_rank, decay_rank, lr; §6 and appendix
SIZES = {
    "1.6b": (24, 2048, 64, 32, 64, 4e-4),
    "3b": (32, 2560, 64, 32, 64, 3e-4),
    "7b": (32, 4096, 64, 64, 128, 1.5e-4),
}


def get_config(size: str = "") -> ConfigDict:
    layers, width, head_size, mix_rank, decay_rank, lr = pick(SIZES, size, (4, 128, 16, 8, 8, None))
    vocab = 65536 if size else None  # World
    rate = {"lr": lr, "lr_source": "the released models'"} if size else swept("rwkv6")
    config = _rwkv.frame(f"{layers}*(rwkv6 rwkv_channel)", width, rate, vocab)
    config.model.rwkv6 = {"heads": width // head_size, "mix_rank": mix_rank, "decay_rank": decay_rank}
    config.model.rwkv_channel = {"of_last": True, "mix_power": 3} | ({"hidden": int(3.5 * width) // 32 * 32} if size else {})
    return config
