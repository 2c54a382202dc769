"""Transformer: rotary attention and SwiGLU, pre-norm, the current standard recipe (Llama, arXiv:2302.13971).

Claim: the baseline in quality; its state and its decoding cost grow with the context.
Expected: about 2.1 bits per byte on the State of the Union addresses after 1000 steps of the laptop size.
Initial values: normal with 1 / sqrt(inputs); maps back to the residual stream divided by the square root of the number of
residual additions (GPT-2, §2.3); embedding with 1 / sqrt(width), so that logits of the tied head have variance 1.
Command: jaxseq train --config=transformer --workdir=runs/transformer
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept

# name: layers, width, heads, kv_heads, hidden, lr (learning rates of GPT-3, Brown et al. 2020, table 2.1)
SIZES = {
    "125m": (12, 768, 12, 12, 2048, 6e-4),
    "350m": (24, 1024, 16, 16, 2736, 3e-4),
    "1.3b": (24, 2048, 32, 32, 5464, 2e-4),
}


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width, heads, kv_heads, hidden, lr = pick(SIZES, size, (4, 128, 4, 4, None, None))
    config.model.stack = f"{layers}*(attention swiglu)"
    config.model.width = width
    config.model.attention = {"heads": heads, "kv_heads": kv_heads}
    config.model.swiglu = {"hidden": hidden} if hidden else {}
    if size:
        config.model.vocab = 50257  # GPT-2's
    config.train.update({"lr": lr, "lr_source": "GPT-3 table 2.1"} if size else swept("transformer"))
    return config
