"""Mamba-2: state space duality, a decay a head and a state of matrices (Dao & Gu 2024, arXiv:2405.21060).

Claim: Mamba's quality with a state eight times as large, from matrix products instead of a scan.
Expected: near Mamba on the quick comparison, at more seconds a token on a CPU: its matrix products want an accelerator.
Initial values: mamba_ssm's: torch's default for linear layers, W_out smaller by sqrt(layers), the embedding 0.02; at the
laptop size 1 / sqrt(width) in its place, as 0.02 is for widths of thousands.
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
        config.model.vocab = 50288  # GPT-NeoX's, up to a multiple of 16
    config.train.update({"lr": lr, "lr_source": "Mamba §E.2: five times GPT-3's"} if size else swept("mamba2"))
    return config
