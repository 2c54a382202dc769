"""Kimi Linear: three layers of Kimi Delta Attention per layer of latent attention (Kimi Team 2025, arXiv:2510.26692, §4).

Claim: better than full attention at equal tokens, with a quarter of its state and several times faster decoding.
Expected: ahead of the Transformer on the quick comparison.
Latent attention has no positions. Departure: dense feed-forwards; the released model has experts.
Initial values: as in transformers' KimiLinearPreTrainedModel: the same normal distribution for all matrices, here with
1 / sqrt(inputs); A from U(1, 16), log-uniform steps.
Command: jaxseq train --config=kimi_linear --workdir=runs/kimi_linear
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width = pick({}, size, (3, 128))
    config.model.stack = f"{layers}*(kda swiglu) + (mla swiglu)"
    config.model.width = width
    config.model.kda = {"heads": 4, "head_size": 32}
    config.model.mla = {"heads": 4, "kv_rank": 32, "head_size": 24, "rotary_size": 8, "rotary": False}
    config.model.swiglu = {"initial": "llama"}
    config.model.tied = False
    config.train.update(swept("kimi_linear"))
    return config
