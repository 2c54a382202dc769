"""DSA: DeepSeek sparse attention: an indexer chooses the tokens (DeepSeek-AI 2025, arXiv:2512.02556).

Claim: as good as full attention for half of the cost at 128k tokens.
Expected: on par with the Transformer at the laptop size, once the indexer has learned from the attention.
Initial values: the defaults.
Command: jaxseq train --config=dsa --workdir=runs/dsa
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width = pick({}, size, (4, 128))  # the published model has latent attention and experts
    config.model.stack = f"{layers}*(deepseek_sparse_attention swiglu)"
    config.model.width = width
    config.model.deepseek_sparse_attention = {"heads": 4, "selected": 64, "index_heads": 2, "index_size": 16}
    config.train.update(swept("transformer") | {"lr_source": "the Transformer's"})
    return config
