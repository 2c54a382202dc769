"""Llama and SmolLM2: rotary positions, RMS norm, SwiGLU, grouped queries (Touvron et al. 2023, arXiv:2302.13971 and 2307.09288;
Ben Allal et al. 2025, arXiv:2502.02737).

Claim: the recipe of most open models; grouped queries make the state a fraction of the Transformer's.
Expected: the quality of the Transformer at the laptop size, with half of its state.
Initial values: as in transformers' LlamaPreTrainedModel: 0.02 for every matrix, including embedding and head. The laptop size
uses 1 / sqrt(inputs) instead: 0.02 is 1 / sqrt(2500), and SmolLM2 at width 576 uses 1 / sqrt(576).
Command: jaxseq train --config=llama --workdir=runs/llama
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept

# initializer_range of the released configs, where it is not 0.02
STDS = {"smollm2-135m": 576**-0.5}
# name: layers, width, heads, kv_heads, hidden, vocab, theta, norm_eps, tied, lr
SIZES = {
    "7b": (32, 4096, 32, 32, 11008, 32000, 1e4, 1e-6, False, 3e-4),
    "13b": (40, 5120, 40, 40, 13824, 32000, 1e4, 1e-6, False, 3e-4),
    "33b": (60, 6656, 52, 52, 17920, 32000, 1e4, 1e-6, False, 1.5e-4),
    "65b": (80, 8192, 64, 64, 22016, 32000, 1e4, 1e-6, False, 1.5e-4),
    "2-7b": (32, 4096, 32, 32, 11008, 32000, 1e4, 1e-5, False, 3e-4),
    "2-13b": (40, 5120, 40, 40, 13824, 32000, 1e4, 1e-5, False, 3e-4),
    "2-70b": (80, 8192, 64, 8, 28672, 32000, 1e4, 1e-5, False, 1.5e-4),
    "smollm2-135m": (30, 576, 9, 3, 1536, 49152, 1e5, 1e-5, True, 3e-3),
    "smollm2-360m": (32, 960, 15, 5, 2560, 49152, 1e5, 1e-5, True, 3e-3),
    "smollm2-1.7b": (24, 2048, 32, 32, 8192, 49152, 1.3e5, 1e-5, True, 5e-4),
}
LAPTOP = (4, 128, 4, 2, None, None, 1e4, 1e-5, False, None)


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width, heads, kv_heads, hidden, vocab, theta, eps, tied, lr = pick(SIZES, size, LAPTOP)
    config.model.stack = f"{layers}*(attention swiglu)"
    config.model.width = width
    config.model.norm_eps = eps
    config.model.tied = tied
    std = STDS.get(size, 0.02) if size else None
    config.model.attention = {"heads": heads, "kv_heads": kv_heads, "theta": theta, "initial": "llama", "init_std": std}
    config.model.swiglu = {"hidden": hidden, "initial": "llama", "init_std": std}
    if size:
        config.model.vocab = vocab
        config.model.embedding_std, config.model.head_scale = std, std * width**0.5
        config.train.schedule = "wsd" if tied else "cosine"  # SmolLM2 decays only at the end
        config.train.warmup = 2000
    config.train.update({"lr": lr, "lr_source": "SmolLM2 §6 and §4" if tied else "Llama table 2"} if size else swept("llama"))
    return config
