"""Gated DeltaNet: a delta rule with decay; each token corrects the value stored for its key (Yang et al. 2024, arXiv:2412.06464).

Claim: better than Mamba-2 at recall and language modelling, with the same state and training by matrix products.
Expected: near Mamba-2 on the quick comparison.
Initial values: as in flash-linear-attention (models/gated_deltanet): the same normal distribution for all matrices, here with
1 / sqrt(inputs); A from U(0, 16), log-uniform steps. Heads have 3/4 width / heads key channels and twice as many value channels.
Command: jaxseq train --config=gdn --workdir=runs/gdn
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept

# name: layers, width, heads, key size, hidden, lr (§4: 4e-4 at 1.3B; sizes of flash-linear-attention's default)
SIZES = {"1.3b": (21, 2048, 6, 256, 5632, 4e-4)}


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width, heads, key_size, hidden, lr = pick(SIZES, size, (4, 128, 4, 24, None, None))
    config.model.stack = f"{layers}*(gdn swiglu)"
    config.model.width = width
    values = {"initial": "llama", "init_std": 0.02 if size else None}
    config.model.gdn = {"heads": heads, "head_size": key_size, "value_size": 2 * key_size} | values
    config.model.swiglu = {"hidden": hidden} | values
    config.model.tied = False
    if size:
        config.model.vocab = 32000
        config.model.embedding_std, config.model.head_scale = 0.02, 0.02 * width**0.5
    config.train.update({"lr": lr, "lr_source": "the paper's, §4"} if size else swept("gdn"))
    return config
