"""NSA: native sparse attention with compressed, selected and sliding branches (Yuan et al. 2025, arXiv:2502.11089).

Claim: as good as full attention, and several times faster at 64k tokens, in training too.
Expected: on par with the Transformer at the laptop size, whose texts are hardly longer than the window.
Initial values: the defaults.
Command: jaxseq train --config=nsa --workdir=runs/nsa
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width = pick({}, size, (4, 128))  # the paper's model of 27B parameters has experts and is not released
    config.model.stack = f"{layers}*(native_sparse_attention swiglu)"
    config.model.width = width
    blocks = {"block": 16, "compressed_block": 8, "stride": 4, "selected": 4, "window": 64}  # a quarter of the paper's
    config.model.native_sparse_attention = {"heads": 4, "learned": True, "separate": True, **blocks}
    config.train.update(swept("transformer") | {"lr_source": "the Transformer's"})
    return config
