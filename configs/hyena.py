"""Hyena: gates and long convolutions with implicit filters, no attention (Poli et al. 2023, arXiv:2302.10866).

Claim: matches the perplexity of Transformers with a fifth less compute at length 2048; O(T log T); the state is the input.
Expected: ahead of the Transformer on the quick comparison, behind Mamba; decoding reads the last 255 inputs of each layer.
Initial values: as in HazyResearch/safari: 0.02, and 0.02 / sqrt(2 layers) for maps back to the residual stream, also in the MLP
of the filters, whose biases are zero. The laptop size uses 1 / sqrt(inputs) instead of 0.02, and torch's default in the MLP of
the filters, because its sines have frequency 4 instead of 14: the standard deviation of their argument,
sine * std * sqrt(hidden), is then 2.3, close to safari's 2.2.
Command: jaxseq train --config=hyena --workdir=runs/hyena
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept

# name: layers, width, hidden, lr; tables A.3 and A.4
SIZES = {
    "125m": (12, 768, 3072, 6e-4),
    "125m-slim": (18, 768, 1536, 6e-4),
    "153m": (18, 864, 1728, 6e-4),
    "355m": (36, 1024, 2048, 4e-4),
    "1.3b": (36, 2048, 4096, 2.2e-4),
}


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width, hidden, lr = pick(SIZES, size, (4, 128, 256, None))
    config.model.stack = f"{layers}*(hyena mlp)"
    config.model.width = width
    config.model.norm = "layernorm"
    std = 0.02 if size else None
    config.model.embedding_std = std
    config.model.mlp = {"hidden": hidden, "init_std": std}
    config.model.hyena = {"l_max": 256, "features": 5, "hidden": 16, "sine": 4.0, "position_lr": 1 / 300}  # times train.lr
    if size:
        config.model.vocab = 50264  # GPT-2's, rounded up to a multiple of 8
        config.model.hyena = {"l_max": 2048, "features": 33, "hidden": 64, "sine": 14.0, "init_std": std, "filter_std": std}
        config.train.length = 2048
        config.train.batch = 256
    config.train.update({"lr": lr, "lr_source": "Hyena table A.3"} if size else swept("hyena"))
    config.train.beta2 = 0.98
    return config
