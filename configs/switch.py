"""Switch Transformer: every second feed-forward is a mixture of experts, one per token (Fedus et al. 2022, arXiv:2101.03961).

Departure: causal decoders with rotary positions. The paper's models are encoder-decoders with T5's relative positions.

Claim: more parameters with the same work per token give better quality in the same time.
Expected: a little behind the Transformer on the quick comparison: each of its four experts gets only a quarter of the tokens.
Initial values: the paper's (§2.4): truncated normal with a tenth of the usual variance 1 / inputs; embedding as in T5.
Command: jaxseq train --config=switch --workdir=runs/switch
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept

# name: layers, width, heads, hidden, experts (the released checkpoints' sizes)
SIZES = {
    "base-8": (12, 768, 12, 3072, 8),
    "base-64": (12, 768, 12, 3072, 64),
    "base-128": (12, 768, 12, 3072, 128),
    "base-256": (12, 768, 12, 3072, 256),
    "large-128": (24, 1024, 16, 4096, 128),
}


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width, heads, hidden, experts = pick(SIZES, size, (4, 128, 4, None, 4))
    config.model.stack = f"{layers // 2}*(attention mlp attention moe)"
    config.model.width = width
    config.model.norm_eps = 1e-6
    config.model.scaled_embedding = True  # T5's embedding has variance 1, and its logits are scaled down
    config.model.attention = {"heads": heads, "initial": "switch"}
    config.model.mlp = {"hidden": hidden, "activation": "relu", "bias": False, "initial": "switch"}
    config.model.moe = {
        "experts": experts, "top_k": 1, "hidden": hidden, "gated": False, "activation": "relu", "normalize": False,
        "balance_loss": 0.01, "capacity_factor": 1.25 if size else None, "jitter": 0.01 if size else 0.0, "initial": "switch",
    }  # fmt: skip
    if size:
        config.model.vocab = 32128
        config.train.length = 512
    config.train.update({"lr": 1e-3, "lr_source": "ours: the paper trains with Adafactor"} if size else swept("switch"))
    return config
