"""Jamba: one layer of attention to seven of Mamba, experts in every other feed-forward (Lieber et al. 2024, arXiv:2403.19887).

Claim: a Transformer's recall for an eighth of its state, and the quality of a dense model several times its active size.
Expected: between the Transformer and Mamba on the quick comparison.
Initial values: transformers' JambaPreTrainedModel for attention and feed-forwards: 0.02 for every matrix, and at the laptop
size 1 / sqrt(inputs) in its place; Mamba's own in its layers, where transformers' 0.02 would undo them.
Command: jaxseq train --config=jamba --workdir=runs/jamba
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept

PERIOD = "mamba swiglu mamba moe mamba swiglu mamba moe attention swiglu mamba moe mamba swiglu mamba moe"
LAPTOP = "3*(mamba swiglu mamba moe) + (attention moe)"  # attention last: few segments compile soon

# name: periods of eight layers, width, heads, kv_heads, hidden; the released models
SIZES = {
    "v0.1": (4, 4096, 32, 8, 14336),
    "1.5-large": (9, 8192, 64, 8, 24576),
}


def get_config(size: str = "") -> ConfigDict:
    config = base()
    periods, width, heads, kv_heads, hidden = pick(SIZES, size, (1, 128, 4, 2, 176))
    config.model.stack = f"{periods}*({PERIOD})" if size else LAPTOP
    config.model.width = width
    config.model.norm_eps = 1e-6
    config.model.tied = False
    values = {"initial": "llama", "init_std": 0.02 if size else None}
    config.model.mamba = {"selected_norm": "scaled", "dt_rank": width // 16, "residuals": 16 if size else 4}
    config.model.attention = {"heads": heads, "kv_heads": kv_heads, "rotary": False} | values  # Mamba tells the order
    config.model.swiglu = {"hidden": hidden if size else None} | values
    config.model.moe = {
        "experts": 16 if size else 4, "top_k": 2, "hidden": hidden, "normalize": False, "balance_loss": 0.001,
    } | values  # fmt: skip
    if size:
        config.model.vocab = 65536
        config.model.embedding_std, config.model.head_scale = 0.02, 0.02 * width**0.5
    config.train.update({"lr": 3e-4, "lr_source": "ours: the paper gives none, Llama's"} if size else swept("jamba"))
    return config
