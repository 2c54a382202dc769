"""Kimi Delta Attention: the gated delta rule with a decay per key channel (Kimi Team 2025, arXiv:2510.26692).

Claim: finer control of forgetting than Gated DeltaNet, which has one decay per head, at equal size.
Expected: near Gated DeltaNet on the quick comparison.
Initial values: as in transformers' KimiLinearPreTrainedModel: the same normal distribution for all matrices, here with
1 / sqrt(inputs); A from U(1, 16), log-uniform steps. There is no published model with only this mixer; see kimi_linear.
Command: jaxseq train --config=kda --workdir=runs/kda
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width = pick({}, size, (4, 128))
    config.model.stack = f"{layers}*(kda swiglu)"
    config.model.width = width
    config.model.kda = {"heads": 4, "head_size": 32}
    config.model.swiglu = {"initial": "llama"}
    config.model.tied = False
    config.train.update(swept("kda"))
    return config
