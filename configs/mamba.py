"""Mamba: selective state space layers only (Gu & Dao 2023, arXiv:2312.00752).

Claim: matches Transformers of twice its size at equal tokens; state and decoding cost are constant.
Expected: better than Transformer and RetNet at the laptop size, but more time per token on a CPU.
Initial values: as in mamba_ssm: torch's default for linear layers, W_out divided by sqrt(layers), embedding 0.02. The laptop size
uses 1 / sqrt(width) for the embedding, because 0.02 is meant for widths of thousands.
Command: jaxseq train --config=mamba --workdir=runs/mamba
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept

FALCON = "falcon-7b"  # Falcon Mamba (Zuo et al. 2024, arXiv:2410.05355): RMS norms on dt, B and C; untied head

# name: layers, width, lr (five times GPT-3's, three times at 2.8B: §E.2.3)
SIZES = {
    "130m": (24, 768, 3e-3),
    "370m": (48, 1024, 1.5e-3),
    "790m": (48, 1536, 1.25e-3),
    "1.4b": (48, 2048, 1e-3),
    "2.8b": (64, 2560, 4.8e-4),
    FALCON: (64, 4096, 6.4e-4),
}


def get_config(size: str = "") -> ConfigDict:
    config = base()
    layers, width, lr = pick(SIZES, size, (8, 128, None))
    config.model.stack = f"{layers}*(mamba)"
    config.model.width = width
    if size:
        config.model.embedding_std = 0.02
        config.model.vocab = 50280  # GPT-NeoX's, rounded up to a multiple of 8
    config.train.update({"lr": lr, "lr_source": "Mamba §E.2: five times GPT-3's"} if size else swept("mamba"))
    if size == FALCON:
        config.model.mamba = {"selected_norm": "plain"}
        config.model.vocab = 65024
        config.model.tied = False
        config.train.schedule = "wsd"
        config.train.final_lr = 1 / 256
        config.train.lr_source = "Falcon Mamba §3.1"
    return config
