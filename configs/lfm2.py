"""LFM2: gated short convolutions, and attention in a few layers (Liquid AI 2025, arXiv:2511.23404).

Claim: the quality of small Transformers at twice the decoding speed on a CPU; most layers have a memory of only two tokens.
Expected: near the Transformer on the quick comparison.
Initial values: as in transformers' Lfm2PreTrainedModel: the same normal distribution for all matrices, here 1 / sqrt(inputs).
Command: jaxseq train --config=lfm2 --workdir=runs/lfm2
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept

CONV, ATTENTION = "lfm_conv swiglu", "normed_attention swiglu"
ONE, TWO, THREE = (f"{n * f'{CONV} '}{ATTENTION}" for n in (1, 2, 3))
LAPTOP = f"2*({TWO})"
RELEASED = f"3*({TWO}) + 3*({ONE}) + ({CONV})"  # attention in layers 2, 5, 8, 10, 12 and 14 of 16
DEEP = f"2*({TWO}) + 4*({THREE}) + 2*({TWO}) + 2*({CONV})"  # in layers 2, 5, 9, 13, 17, 21, 24 and 27 of 30

# name: stack, width, heads, kv_heads, hidden; the released models
SIZES = {
    "350m": (RELEASED, 1024, 16, 8, 4608),
    "700m": (RELEASED, 1536, 24, 8, 6912),
    "1.2b": (RELEASED, 2048, 32, 8, 8192),
    "2.6b": (DEEP, 2048, 32, 8, 10752),
}


def get_config(size: str = "") -> ConfigDict:
    config = base()
    config.model.stack, width, heads, kv_heads, hidden = pick(SIZES, size, (LAPTOP, 128, 4, 2, None))
    config.model.width = width
    values = {"initial": "llama", "init_std": 0.02 if size else None}
    config.model.lfm_conv = dict(values)
    config.model.normed_attention = {"heads": heads, "kv_heads": kv_heads, "theta": 1e6, "eps": 1e-5} | values
    config.model.swiglu = {"hidden": hidden} | values
    if size:
        config.model.vocab = 65536
        config.model.embedding_std = 0.02
    config.train.update({"lr": 3e-4, "lr_source": "ours: the report gives none"} if size else swept("lfm2"))
    return config
