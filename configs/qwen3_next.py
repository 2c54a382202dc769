"""Three layers of Gated DeltaNet to one of gated attention, Qwen3-Next's pattern (Qwen Team 2025), with dense feed-forwards.

Claim: the quality of full attention from a quarter of its layers, and a quarter of its state.
Expected: ahead of the Transformer on the quick comparison.
Initial values: transformers' Qwen3NextPreTrainedModel: one normal figure for all matrices, here 1 / sqrt(inputs); A in U(0, 16);
the steps log-uniform as in Gated DeltaNet, where transformers sets their bias to 1. The released model has experts.
Command: jaxseq train --config=qwen3_next --workdir=runs/qwen3_next
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width = pick({}, size, (3, 128))
    config.model.stack = f"{layers}*(gdn swiglu) + (normed_attention swiglu)"
    config.model.width = width
    config.model.norm_eps = 1e-6
    config.model.gdn = {"heads": 2, "value_heads": 4, "head_size": 32, "eps": 1e-6}
    config.model.normed_attention = {"heads": 4, "kv_heads": 2, "gated": True, "rotary_fraction": 0.25}
    config.model.swiglu = {"initial": "llama"}
    config.model.tied = False
    config.train.update(swept("qwen3_next"))
    return config
