"""Mamba-2 with a few attention layers without positions: the pattern of Granite 4.0-H and Nemotron-H (arXiv:2504.03624).

Claim: the quality of a Transformer with a tenth of its attention layers, and so a tenth of its state.
Expected: near Mamba-2 on the quick comparison.
Initial values: Mamba-2's in its layers, with W_out divided by sqrt(2 layers) for two residual additions per layer; elsewhere as
in transformers' GraniteMoeHybridPreTrainedModel: the same normal distribution for all matrices, here 1 / sqrt(inputs). The
released sizes have 0.1 there, and multipliers for the embedding, the scores, the residual connections and the logits.
Command: jaxseq train --config=granite_hybrid --workdir=runs/granite_hybrid
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept

M, A = "mamba2 swiglu", "attention swiglu"
LAPTOP = f"3*({M}) + ({A})"
RELEASED = f"4*({' '.join([*5 * [M], A, *4 * [M]])})"  # attention in layers 5, 15, 25 and 35 of 40
SMALLEST = f"10*({M}) + 2*({A} {M} {M}) + ({M}) + ({A}) + 9*({M}) + ({A}) + 4*({M})"  # in layers 10, 13, 17 and 27 of 32

# name: stack, width, heads, kv_heads, heads of mamba2, hidden, residual multiplier, divisor of the logits; Granite 4.0-H
SIZES = {
    "350m": (SMALLEST, 768, 12, 4, 48, 2048, 0.246, 3),
    "1b": (RELEASED, 1536, 12, 4, 48, 4096, 0.22, 6),
    "3b": (RELEASED, 2048, 32, 8, 64, 8192, 0.22, 8),
    "7b-a1b": (RELEASED, 1536, 12, 4, 48, 512, 0.22, 6),
    "32b-a9b": (RELEASED, 4096, 32, 8, 128, 768, 0.22, 16),
}
EXPERTS = {"7b-a1b": (64, 6, 1024), "32b-a9b": (72, 10, 1536)}  # experts, top_k, shared_hidden


def get_config(size: str = "") -> ConfigDict:
    config = base()
    laptop = (LAPTOP, 128, 4, 2, 8, None, 1.0, 1)
    stack, width, heads, kv_heads, mamba_heads, hidden, residual, divisor = pick(SIZES, size, laptop)
    config.model.stack = stack.replace("swiglu", "shared_moe") if size in EXPERTS else stack
    config.model.width = width
    residuals = 20 if stack == RELEASED else 2  # of a block; the 32 layers of the smallest are 28 blocks
    config.model.mamba2 = {"heads": mamba_heads, "state_size": 128 if size else 64, "residuals": residuals}
    values = {"initial": "llama", "init_std": 0.1 if size else None}
    scale = heads / width if size else None  # 1 / K for 1 / sqrt(K), as in µP
    config.model.attention = {"heads": heads, "kv_heads": kv_heads, "rotary": False, "scale": scale} | values
    config.model.swiglu = {"hidden": hidden} | values
    if size in EXPERTS:
        experts, top_k, shared = EXPERTS[size]
        config.model.shared_moe = {"experts": experts, "top_k": top_k, "hidden": hidden, "shared_hidden": shared} | values
    if size:
        config.model.vocab = 100352
        config.model.embedding_std, config.model.embedding_scale, config.model.logit_scale = 0.1, 12.0, 1 / divisor
        config.model.block, config.model.scaled = "scaled", {"scale": residual}
    config.train.update({"lr": 3e-4, "lr_source": "ours: IBM gives none"} if size else swept("granite_hybrid"))
    return config
