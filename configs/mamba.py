"""Mamba: a selective state space model, alone in the stack (Gu & Dao 2023, arXiv:2312.00752).

Claim: matches Transformers of twice its size at equal tokens; state and decoding cost are constant.
Expected: the best of the three at the laptop size, at more seconds a token on a CPU.
Initial values: mamba_ssm's: torch's default for linear layers, W_out smaller by sqrt(layers), the embedding 0.02; at the
laptop size 1 / sqrt(width) in its place, as 0.02 is for widths of thousands.
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
        config.model.vocab = 50280  # GPT-NeoX's, up to a multiple of 8
    config.train.update({"lr": lr, "lr_source": "Mamba §E.2: five times GPT-3's"} if size else swept("mamba"))
    if size == FALCON:
        config.model.mamba = {"selected_norm": "plain"}
        config.model.vocab = 65024
        config.model.tied = False
        config.train.schedule = "wsd"
        config.train.final_lr = 1 / 256
        config.train.lr_source = "Falcon Mamba §3.1"
    return config
