"""S4D: alternating diagonal state space models and feed-forwards (Gu et al. 2022, arXiv:2206.11893).

Claim: a time-invariant state space model, trained as a convolution by FFTs, with a state of constant size.
Expected: between RetNet and an LSTM at the laptop size: what it remembers cannot depend on its input.
Initial values: as in state-spaces/s4: torch's default for linear layers and biases, without scaling for maps back to the residual
stream; 1 / sqrt(width) for the embedding, whose output is multiplied by sqrt(width).
Command: jaxseq train --config=s4d --workdir=runs/s4d
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept

# name: layers, width, state_size, lr; S4's model of WikiText-103 (arXiv:2111.00396, table 11) with the diagonal kernel
SIZES = {"wikitext": (16, 1024, 64, 5e-4)}


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width, state_size, lr = pick(SIZES, size, (4, 128, 32, None))
    config.model.stack = f"{layers}*(s4d mlp)"
    config.model.width = width
    config.model.norm = "layernorm"
    config.model.scaled_embedding = True
    config.model.mlp = {"initial": "torch"}
    config.model.s4d = {"state_size": state_size, "kernel_lr": 1.0 if size else 1 / 3}
    if size:
        config.model.dropout = 0.25
        config.model.vocab = 267735  # WikiText-103's words; the paper uses an adaptive softmax
        config.train.length = 8192
        config.train.warmup = 1000
    config.train.update({"lr": lr, "lr_source": "S4 table 11"} if size else swept("s4d"))
    return config
