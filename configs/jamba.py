"""Jamba: one attention layer per seven Mamba layers, experts in every second feed-forward (Lieber et al. 2024, arXiv:2403.19887).

Claim: the recall of a Transformer with an eighth of its state, and the quality of a dense model several times its active size.
Expected: between the Transformer and Mamba on the quick comparison.
Initial values: attention and feed-forwards as in transformers' JambaPreTrainedModel: 0.02 for every matrix; the laptop size uses
1 / sqrt(inputs) instead. Mamba layers as in Mamba, not transformers' 0.02, which would overwrite its special initial values.
Command: jaxseq train --config=jamba --workdir=runs/jamba
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept

PERIOD = "mamba swiglu mamba moe mamba swiglu mamba moe attention swiglu mamba moe mamba swiglu mamba moe"
LAPTOP = "3*(mamba swiglu mamba moe) + (attention moe)"  # attention last, so that there are few segments to compile

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
    config.model.attention = {"heads": heads, "kv_heads": kv_heads, "rotary": False} | values  # Mamba encodes the order
    config.model.swiglu = {"hidden": hidden if size else None} | values
    config.model.moe = {
        "experts": 16 if size else 4, "top_k": 2, "hidden": hidden, "normalize": False, "balance_loss": 0.001,
    } | values  # fmt: skip
    if size:
        config.model.vocab = 65536
        config.model.embedding_std, config.model.head_scale = 0.02, 0.02 * width**0.5
    config.train.update({"lr": 3e-4, "lr_source": "ours: Llama's, as the paper gives none"} if size else swept("jamba"))
    return config
