"""Mamba-2 with a few attention layers without positions: the pattern of Granite 4.0-H and Nemotron-H (arXiv:2504.03624).

Claim: the quality of a Transformer with a tenth of its attention layers, and so a tenth of its state.
Expected: near Mamba-2 on the quick comparison.
Initial values: Mamba-2's in its layers, with W_out divided by sqrt(2 layers) for two residual additions per layer; elsewhere as
in transformers' GraniteMoeHybridPreTrainedModel: the same normal distribution for all matrices, here 1 / sqrt(inputs).
Command: jaxseq train --config=granite_hybrid --workdir=runs/granite_hybrid
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept


def get_config(size: str = "") -> ConfigDict:
    config = base()
    mambas, width = pick({}, size, (3, 128))
    config.model.stack = f"{mambas}*(mamba2 swiglu) + (attention swiglu)"
    config.model.width = width
    config.model.mamba2 = {"heads": 8, "state_size": 64, "residuals": 2}
    config.model.attention = {"heads": 4, "kv_heads": 2, "rotary": False, "initial": "llama"}
    config.model.swiglu = {"initial": "llama"}
    config.train.update(swept("granite_hybrid"))
    return config
