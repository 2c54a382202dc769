"""Mamba-2: state space duality, with one decay per head and a matrix state (Dao & Gu 2024, arXiv:2405.21060).

Claim: the quality of Mamba with a state eight times as large, computed by matrix products instead of a scan.
Expected: near Mamba on the quick comparison, with more time per token on a CPU, because matrix products need an accelerator.
Initial values: as in mamba_ssm: torch's default for linear layers, W_out divided by sqrt(layers), embedding 0.02. The laptop size
uses 1 / sqrt(width) for the embedding, because 0.02 is meant for widths of thousands.
Command: jaxseq train --config=mamba2 --workdir=runs/mamba2
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept

# name: layers, width, lr (Mamba's: five times GPT-3's, three times at 2.7B); heads of 64 channels, state size 128
SIZES = {
    "130m": (24, 768, 3e-3),
    "370m": (48, 1024, 1.5e-3),
    "780m": (48, 1536, 1.25e-3),
    "1.3b": (48, 2048, 1e-3),
    "2.7b": (64, 2560, 4.8e-4),
}


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width, lr = pick(SIZES, size, (8, 128, None))
    config.model.stack = f"{layers}*(mamba2)"
    config.model.width = width
    head_size, state_size = (64, 128) if size else (32, 64)
    config.model.mamba2 = {"heads": 2 * width // head_size, "state_size": state_size}
    if size:
        config.model.embedding_std = 0.02
        config.model.vocab = 50288  # GPT-NeoX's, rounded up to a multiple of 16
    config.train.update({"lr": lr, "lr_source": "Mamba §E.2: five times GPT-3's"} if size else swept("mamba2"))
    return config
