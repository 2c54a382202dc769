"""Samba: alternating Mamba and sliding-window attention, each followed by a feed-forward (Ren et al. 2024, arXiv:2406.07522).

Claim: better than either alone at equal size, with a state of constant size; extrapolates from 4096 to a million tokens.
Expected: a little behind Mamba on the quick comparison.
Initial values: microsoft/Samba, lit_gpt/model.py with `mamba_init`: torch's default for linear layers, maps back to the residual
stream divided by the square root of the number of residual additions; embedding 0.02, at the laptop size 1 / sqrt(width).
Command: jaxseq train --config=samba --workdir=runs/samba
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept

# name: pairs of layers, width, heads, kv_heads, hidden, window, steps (of 2 million tokens each)
SIZES = {
    "421m": (6, 1536, 12, 12, 4096, 2048, 9537),
    "1.3b": (9, 2304, 18, 18, 6144, 2048, 47684),
}


def get_config(size: str = "") -> ConfigDict:
    config = base()
    pairs, width, heads, kv_heads, hidden, window, steps = pick(SIZES, size, (2, 128, 4, 2, None, 64, None))
    config.model.stack = f"{pairs}*(mamba swiglu attention swiglu)"
    config.model.width = width
    config.model.mamba = {"residuals": 4}
    config.model.attention = {"heads": heads, "kv_heads": kv_heads, "window": window, "initial": "mamba"}
    config.model.swiglu = {"hidden": hidden, "initial": "mamba"}
    config.train.update(swept("samba"))
    if size:
        config.model.vocab = 32000
        config.model.embedding_std = 0.02
        config.train.lr = 4e-4
        config.train.lr_source = "the released training's"
        config.train.length, config.train.batch = 4096, 512
        config.train.steps, config.train.warmup = steps, steps // 100
    return config
