"""GPT-2: learned positions, layer norm, GELU, biases everywhere (Radford et al. 2019, "Language Models are Unsupervised
Multitask Learners").

Claim: still the reference decoder of the field; its context is limited to its table of positions.
Expected: far behind the Transformer on the quick comparison: absolute positions learn slowly.
Initial values: as in transformers' GPT2PreTrainedModel: 0.02, also for embedding and positions, and 0.02 / sqrt(2 layers) for
maps back to the residual stream. The laptop size uses 1 / sqrt(inputs) instead of 0.02, which is 1 / sqrt(2500).
Command: jaxseq train --config=gpt2 --workdir=runs/gpt2
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept

# name: layers, width, heads, lr (not given in the paper: GPT-3's of that size, Brown et al. 2020, table 2.1)
SIZES = {
    "124m": (12, 768, 12, 6e-4),
    "355m": (24, 1024, 16, 3e-4),
    "774m": (36, 1280, 20, 2.5e-4),
    "1.5b": (48, 1600, 25, 2e-4),
}


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width, heads, lr = pick(SIZES, size, (4, 128, 4, None))
    config.model.stack = f"{layers}*(attention mlp)"
    config.model.width = width
    config.model.norm = "layernorm"
    config.model.positions = "learned"
    config.model.max_positions = 1024 if size else 256  # tokens of a training row
    std = 0.02 if size else None
    config.model.embedding_std = std
    config.model.attention = {"heads": heads, "rotary": False, "bias": True, "init_std": std}
    config.model.mlp = {"init_std": std}
    if size:
        config.model.vocab = 50257
        config.model.dropout = 0.1
        config.train.length = 1024
        config.train.batch = 512
        config.eval.length = 1024
    config.train.update({"lr": lr, "lr_source": "GPT-3 table 2.1"} if size else swept("gpt2"))
    return config
