"""Qwen3-Next: three layers of Gated DeltaNet per layer of gated attention (Qwen Team 2025), with dense feed-forwards.

Claim: the quality of full attention with a quarter of its attention layers, and a quarter of its state.
Expected: ahead of the Transformer on the quick comparison.
Departure: the released model has experts.
Initial values: as in transformers' Qwen3NextPreTrainedModel: the same normal distribution for all matrices, here with
1 / sqrt(inputs); A from U(0, 16). Steps are log-uniform as in Gated DeltaNet; transformers sets their bias to 1.
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
