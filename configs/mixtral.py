"""Mixtral: Llama with eight experts per feed-forward, two of them per token (Jiang et al. 2024, arXiv:2401.04088).

Claim: the quality of a dense model several times its active size.
Expected: ahead of the Transformer at the laptop size, with the same work per token.
Initial values: as in transformers' MixtralPreTrainedModel: 0.02 for every matrix, including routers and experts. The laptop size
uses 1 / sqrt(inputs) instead, as for Llama.
Command: jaxseq train --config=mixtral --workdir=runs/mixtral
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept

# name: layers, width, heads, kv_heads, hidden, vocab
SIZES = {
    "8x7b": (32, 4096, 32, 8, 14336, 32000),
    "8x22b": (56, 6144, 48, 8, 16384, 32768),
}


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width, heads, kv_heads, hidden, vocab = pick(SIZES, size, (4, 128, 4, 2, 176, None))  # half of SwiGLU's hidden
    config.model.stack = f"{layers}*(attention moe)"
    config.model.width = width
    config.model.tied = False
    values = {"initial": "llama", "init_std": 0.02 if size else None}
    config.model.attention = {"heads": heads, "kv_heads": kv_heads, "theta": 1e6 if size else 1e4} | values
    config.model.moe = {"experts": 8 if size else 4, "top_k": 2, "hidden": hidden, "balance_loss": 0.02} | values
    if size:
        config.model.vocab = vocab
        config.model.embedding_std, config.model.head_scale = 0.02, 0.02 * width**0.5
    config.train.update({"lr": 3e-4, "lr_source": "ours: Llama's, as the paper gives none"} if size else swept("mixtral"))
    return config
