"""RetNet: multi-scale retention instead of attention (Sun et al. 2023, arXiv:2307.08621).

Claim: Transformer quality from about 2B parameters on, with a state of constant size and O(1) decoding.
Expected: behind the Transformer on the quick comparison and on the standard one.
Initial values: as in microsoft/torchscale: Xavier with gains 2^-2.5 and 2^-1 in retention, torch's default in the feed-forward,
1 / sqrt(width) for embedding and untied head; the embedding's output is multiplied by sqrt(width). Published sizes use the
paper's (§3.1). Keys have 32 channels at the laptop size and 256 in the paper: larger keys would leave too few heads (decays).
Command: jaxseq train --config=retnet --workdir=runs/retnet
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept

# name: layers, width, heads (key size 256), lr; §3.1 and table 2
SIZES = {
    "1.3b": (24, 2048, 8, 6e-4),
    "2.7b": (32, 2560, 10, 3e-4),
    "6.7b": (32, 4096, 16, 3e-4),
}


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width, heads, lr = pick(SIZES, size, (4, 128, 4, None))
    config.model.stack = f"{layers}*(retention mlp)"
    config.model.width = width
    config.model.tied = False
    config.model.scaled_embedding = True
    config.model.retention = {"heads": heads}
    config.model.mlp = {"factor": 2, "bias": False, "initial": "torch"}  # 12 width^2 parameters per layer, like a Transformer
    config.model.norm_eps = 1e-6
    config.train.update({"lr": lr, "lr_source": "RetNet table 2"} if size else swept("retnet"))
    config.train.beta2 = 0.98
    config.train.weight_decay = 0.05
    if size:
        published(config, layers, width)
    return config


def published(config: ConfigDict, layers: int, width: int) -> None:
    """§3.1: the decays of the experiments; DeepNet's initialisation, Xavier with gain (8 layers)^(-1/4); 100 billion tokens."""
    config.model.vocab = 50257  # GPT-2's
    config.model.retention.update(decay="experiments", deepnet=True)
    std = (8 * layers) ** -0.25 * (2 / (3 * width)) ** 0.5
    config.model.mlp.update(initial="gpt2", init_std=std, output_std=std)
    config.train.length, config.train.batch = 2048, 2048
    config.train.steps, config.train.warmup = 25000, 375
    config.train.schedule, config.train.final_lr = "linear", 0.0
