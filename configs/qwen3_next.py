"""Qwen3-Next: three layers of Gated DeltaNet per layer of gated attention (Qwen Team 2025), with dense feed-forwards.

Claim: the quality of full attention with a quarter of its attention layers, and a quarter of its state.
Expected: ahead of the Transformer on the quick comparison.
Departure of the laptop size: dense feed-forwards; the released model has experts.
Initial values: as in transformers' Qwen3NextPreTrainedModel: the same normal distribution for all matrices, here with
1 / sqrt(inputs); A from U(0, 16). Steps are log-uniform as in Gated DeltaNet; transformers sets their bias to 1.
Command: jaxseq train --config=qwen3_next --workdir=runs/qwen3_next
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept

G, A = "gdn swiglu", "normed_attention swiglu"
LAPTOP = f"3*({G}) + ({A})"
RELEASED = f"12*({G} {G} {G} {A})".replace("swiglu", "shared_moe")

# name: stack, width, heads, kv_heads, head size, heads of gdn, its value heads, its head size
SIZES = {"80b-a3b": (RELEASED, 2048, 16, 2, 256, 16, 32, 128)}


def get_config(size: str = "") -> ConfigDict:
    config = base()
    laptop = (LAPTOP, 128, 4, 2, None, 2, 4, 32)
    config.model.stack, width, heads, kv_heads, head_size, keys, values, delta_size = pick(SIZES, size, laptop)
    config.model.width = width
    config.model.norm_eps = 1e-6
    start = {"initial": "llama", "init_std": 0.02 if size else None}
    config.model.gdn = {"heads": keys, "value_heads": values, "head_size": delta_size, "eps": 1e-6} | start
    norm, theta = ("rmsnorm_offset", 1e7) if size else ("rmsnorm", 1e4)
    config.model.norm = norm
    config.model.normed_attention = {
        "heads": heads, "kv_heads": kv_heads, "head_size": head_size, "gated": True, "rotary_fraction": 0.25, "theta": theta,
        "norm": norm,
    } | start  # fmt: skip
    config.model.swiglu = {"initial": "llama"}
    config.model.tied = False
    if size:
        config.model.shared_moe = {
            "experts": 512, "top_k": 10, "hidden": 512, "shared_hidden": 512, "shared_gate": True, "balance_loss": 0.001,
        } | start  # fmt: skip
        config.model.vocab = 151936
        config.model.embedding_std, config.model.head_scale = 0.02, 0.02 * width**0.5
    config.train.update({"lr": 3e-4, "lr_source": "ours: Qwen gives none"} if size else swept("qwen3_next"))
    return config
