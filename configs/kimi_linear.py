"""Kimi Linear: three layers of Kimi Delta Attention per layer of latent attention (Kimi Team 2025, arXiv:2510.26692, §4).

Claim: better than full attention at equal tokens, with a quarter of its state and several times faster decoding.
Expected: ahead of the Transformer on the quick comparison.
Latent attention has no positions. Departure of the laptop size: dense feed-forwards; the released model has experts.
Initial values: as in transformers' KimiLinearPreTrainedModel: the same normal distribution for all matrices, here with
1 / sqrt(inputs); A from U(1, 16), log-uniform steps.
Command: jaxseq train --config=kimi_linear --workdir=runs/kimi_linear
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept

K, A = "kda swiglu", "mla swiglu"
LAPTOP = f"3*({K}) + ({A})"
# Latent attention in layers 3, 7, 11, 15, 19, 23 and 26 of 27; experts in all but the first
RELEASED = f"({K}) + " + f"6*({K} {K} {A} {K}) + ({K}) + ({A})".replace("swiglu", "shared_moe")

# name: stack, width, heads, head size of kda, hidden of the first layer; the sizes of latent attention
SIZES = {"48b-a3b": (RELEASED, 2304, 32, 128, 9216, {"kv_rank": 512, "head_size": 128, "rotary_size": 64})}


def get_config(size: str = "") -> ConfigDict:
    config = base()
    laptop = (LAPTOP, 128, 4, 32, None, {"kv_rank": 32, "head_size": 24, "rotary_size": 8})
    config.model.stack, width, heads, delta_size, hidden, latent = pick(SIZES, size, laptop)
    config.model.width = width
    values = {"initial": "llama", "init_std": 0.02 if size else None}
    config.model.kda = {"heads": heads, "head_size": delta_size} | values
    config.model.mla = {"heads": heads, "rotary": False} | latent | values
    config.model.swiglu = {"hidden": hidden} | values
    config.model.tied = False
    if size:
        config.model.shared_moe = {
            "experts": 256, "top_k": 8, "hidden": 1024, "shared_hidden": 1024, "router": "sigmoid", "scale": 2.446,
            "balance_loss": 0.0,
        } | values  # fmt: skip
        config.model.vocab = 163840
        config.model.embedding_std, config.model.head_scale = 0.02, 0.02 * width**0.5
    config.train.update({"lr": 3e-4, "lr_source": "ours: a common choice"} if size else swept("kimi_linear"))
    return config
