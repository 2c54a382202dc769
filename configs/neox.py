"""GPT-NeoX and Pythia: attention and feed-forward in parallel, rotary positions in a quarter of each head (Black et al. 2022,
arXiv:2204.06745; Biderman et al. 2023, arXiv:2304.01373).

Claim: parallel branches cost little quality and save one synchronisation per layer in tensor parallelism.
Expected: a little behind the Transformer on the quick comparison.
Initial values: those of the released training (§2.1.3; EleutherAI/gpt-neox, `small_init_method` and `wang_init_method`):
sqrt(2 / (5 width)), also for embedding and head, and 2 / (layers sqrt(width)) for maps back to the residual stream. The default
0.02 of transformers was not used to train these models.
Command: jaxseq train --config=neox --workdir=runs/neox
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept

# name: layers, width, heads, vocab (padded for tensor parallelism), lr; Pythia table 1, 20b: GPT-NeoX-20B §2
SIZES = {
    "70m": (6, 512, 8, 50304, 1e-3),
    "160m": (12, 768, 12, 50304, 6e-4),
    "410m": (24, 1024, 16, 50304, 3e-4),
    "1b": (16, 2048, 8, 50304, 3e-4),
    "1.4b": (24, 2048, 16, 50304, 2e-4),
    "2.8b": (32, 2560, 32, 50304, 1.6e-4),
    "6.9b": (32, 4096, 32, 50432, 1.2e-4),
    "12b": (36, 5120, 40, 50688, 1.2e-4),
    "20b": (44, 6144, 64, 50432, 0.97e-4),
}


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width, heads, vocab, lr = pick(SIZES, size, (4, 128, 4, None, None))
    config.model.stack = f"{layers}*(attention mlp)"
    config.model.block = "parallel"
    config.model.width = width
    config.model.tied = False
    config.model.norm = "layernorm"
    config.model.embedding_gain = config.model.head_scale = 0.4**0.5
    config.model.attention = {"heads": heads, "rotary_fraction": 0.25, "bias": True, "initial": "neox"}
    config.model.mlp = {"activation": "gelu", "initial": "neox"}
    if size:
        config.model.vocab = vocab
        config.train.length = 2048
        config.train.batch = 1024
        config.eval.length = 2048
    config.train.update({"lr": lr, "lr_source": "Pythia table 1"} if size else swept("neox"))
    config.train.weight_decay = 0.01 if size == "20b" else 0.1
    return config
