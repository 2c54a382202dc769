"""Griffin: gated linear recurrences and local attention, two to one (De et al. 2024, arXiv:2402.19427).

Claim: matches Llama-2 with a sixth of its training tokens, has a state of fixed size, and extrapolates to long sequences.
Expected: ahead of the Transformer on the quick comparison, behind Mamba; decoding speed does not depend on the length.
Initial values: as in recurrentgemma: variance 1 / inputs, 2 / (residual blocks * inputs) for maps back to the residual stream,
1 / width for the embedding, whose output is multiplied by sqrt(width).
Command: jaxseq train --config=griffin --workdir=runs/griffin
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept

# name: layers, width, hidden of the recurrence, heads of 128, lr (table 2; learning rates of GPT-3 at that size, because the
# paper extrapolates its own from small runs and does not list them)
SIZES = {
    "100m": (12, 768, 1024, 6, 6e-4),
    "200m": (12, 1024, 1536, 8, 3e-4),
    "400m": (12, 1536, 2048, 12, 2.5e-4),
    "1.3b": (24, 2048, 2560, 16, 2e-4),
    "3b": (24, 3072, 4096, 24, 1.6e-4),
    "7b": (32, 4096, 5632, 32, 1.2e-4),
    "14b": (40, 5120, 8192, 40, 1e-4),
}


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width, hidden, heads, lr = pick(SIZES, size, (6, 128, 128, 4, None))
    recurrent, local = "rglru geglu", "attention geglu"
    rest = f" + ({' '.join([recurrent] * (layers % 3))})" if layers % 3 else ""
    config.model.stack = f"{layers // 3}*({recurrent} {recurrent} {local}){rest}"
    config.model.width = width
    config.model.scaled_embedding = True
    config.model.rglru = {"heads": 16 if size else 4, "hidden": hidden if size else None}
    config.model.attention = {"heads": heads, "kv_heads": 1, "window": 1024 if size else 64, "initial": "griffin"}
    config.model.geglu = {"initial": "griffin"}
    if size:
        config.model.vocab = 32000
        config.train.length = 2048
        config.eval.length = 2048
    config.train.update({"lr": lr, "lr_source": "GPT-3 table 2.1, of the nearest size"} if size else swept("griffin"))
    return config
