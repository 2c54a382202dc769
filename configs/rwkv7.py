"""RWKV-7 "Goose": a generalised delta rule with vector decays and learning rates (Peng et al. 2025, arXiv:2503.14456).

Claim: can track states that attention and diagonal recurrences cannot; the best RWKV at equal size.
Expected: near RWKV-6 on the quick comparison.
Initial values: as in the released code, including the layer scale of norms; see configs/_rwkv.py.
Command: jaxseq train --config=rwkv7 --workdir=runs/rwkv7
"""

from ml_collections import ConfigDict

from jaxseq.config import pick
from jaxseq.configs import _rwkv
from jaxseq.configs._rates import swept

# name: layers, width, head size, ranks of decay and rate, value, gate, lr; the released World models
SIZES = {
    "0.1b": (12, 768, 64, 64, 32, 128, 6e-4),
    "0.4b": (24, 1024, 64, 64, 32, 128, 5e-4),
    "1.5b": (24, 2048, 64, 96, 64, 256, 4e-4),
    "2.9b": (32, 2560, 64, 96, 64, 320, 4e-4),
}


def get_config(size: str = "") -> ConfigDict:
    layers, width, head_size, rank, value, gate, lr = pick(SIZES, size, (4, 128, 16, 8, 8, 16, None))
    stack = f"(rwkv7:first rwkv_channel) + {layers - 1}*(rwkv7 rwkv_channel)"
    vocab = 65536 if size else None  # World
    rate = {"lr": lr, "lr_source": "0.1b: the released training's; larger: ours, falling with size"} if size else swept("rwkv7")
    config = _rwkv.frame(stack, width, rate, vocab)
    fields = {"heads": width // head_size, "decay_rank": rank, "rate_rank": rank, "value_rank": value, "gate_rank": gate}
    config.model.rwkv7 = fields
    config.model["rwkv7:first"] = fields | {"first": True}
    config.model.rwkv_channel = {"gated": False, "of_last": True}
    return config
