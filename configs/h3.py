"""H3: gated shift and diagonal state space models, with a few attention layers (Fu et al. 2022, arXiv:2212.14052).

Claim: the first state space model to match Transformers on text, with only two attention layers.
Expected: between Hyena and the Transformer at the laptop size, which has no attention layers.
Initial values: HazyResearch/H3, `_init_weights`: 0.02, and 0.02 / sqrt(2 layers) for the outputs of attention and feed-forwards,
but not of H3; the laptop size uses 1 / sqrt(inputs) instead of 0.02. Both state space models as in S4D.
Command: jaxseq train --config=h3 --workdir=runs/h3
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept

# name: layers, width, heads, indices of the attention layers, lr (§F.2 and the released models)
SIZES = {
    "125m": (12, 768, 12, (6,), 6e-4),
    "355m": (24, 1024, 16, (8, 16), 3e-4),
    "1.3b": (24, 2048, 16, (8, 16), 2e-4),
    "2.7b": (32, 2560, 20, (8, 16, 24), 1.6e-4),
}


def stack(layers: int, attention: tuple[int, ...]) -> str:
    """The stack with attention in the layers with these indices (from 0) and H3 in all others."""
    runs = [b - a - 1 for a, b in zip((-1, *attention), (*attention, layers), strict=True)]
    return " + (attention mlp) + ".join(f"{n}*(h3 mlp)" for n in runs)


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width, heads, attention, lr = pick(SIZES, size, (4, 128, 4, (), None))
    config.model.stack = stack(layers, attention)
    config.model.width = width
    config.model.norm = "layernorm"
    std = 0.02 if size else None
    config.model.embedding_std = std
    config.model.h3 = {"state_size": 64 if size else 32, "init_std": std}
    config.model.mlp = {"init_std": std}
    if size:
        config.model.attention = {"heads": heads, "rotary": False, "bias": True, "init_std": std}
        config.model.vocab = 50264  # GPT-2's, rounded up to a multiple of 8
        config.train.length = 2048
    config.train.update({"lr": lr, "lr_source": "GPT-3's, as H3 §F.2"} if size else swept("h3"))
    return config
