"""PanGu-pi: Llama with augmented shortcuts and a series of activations (Wang et al. 2023, arXiv:2312.17276; Tang et al. 2024,
arXiv:2402.02791).

Claim: more nonlinearity prevents the features of different tokens from collapsing, and allows a tenth fewer layers.
Expected: a little ahead of the Transformer on the quick comparison.
Initial values: the Transformer's; the papers do not give any.
Command: jaxseq train --config=pangu --workdir=runs/pangu
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept

# name: layers, width, heads, hidden (8/3 width, rounded up to a multiple of 256), vocab (the first paper says about 100k)
SIZES = {
    "1b": (12, 2048, 16, 5632, 100_000),
    "7b": (29, 4096, 32, 11008, 100_000),
    "pro-tiny": (20, 1792, 14, 4864, 48_000),  # PanGu-pi-1B Pro: deeper, with a smaller vocabulary
}


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width, heads, hidden, vocab = pick(SIZES, size, (4, 128, 4, None, None))
    config.model.stack = f"{layers}*(attention series_swiglu)"
    config.model.block = "augmented"
    config.model.width = width
    config.model.tied = False
    config.model.augmented = {"shortcuts": 1, "reduction": 32 if size else 8}
    config.model.attention = {"heads": heads}
    config.model.series_swiglu = {"terms": 2, "hidden": hidden}
    if size:
        config.model.vocab = vocab
        config.train.warmup = 4000
        config.train.length = 2048
    config.train.update({"lr": 3e-4, "lr_source": "PanGu-pi §5.1"} if size else swept("pangu"))
    return config
