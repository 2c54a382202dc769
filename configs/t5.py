"""T5: an encoder-decoder that fills in spans, with relative positions (Raffel et al. 2020, arXiv:1910.10683).

Also v1.1 (gated GELU and untied head: Shazeer 2020, arXiv:2002.05202) and Switch Transformer (arXiv:2101.03961).

Claim: for text-to-text tasks, a bidirectional encoder with a causal decoder is better than a decoder alone.
Expected: a falling loss on masked spans of the State of the Union addresses; worse than a decoder at continuing text.
Command: jaxseq train --config=t5 --workdir=runs/t5
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick

# name: layers of each stack, width, heads, head size, hidden, gated, experts
SIZES = {
    "small": (6, 512, 8, 64, 2048, False, 0),
    "base": (12, 768, 12, 64, 3072, False, 0),
    "large": (24, 1024, 16, 64, 4096, False, 0),
    "3b": (24, 1024, 32, 128, 16384, False, 0),
    "11b": (24, 1024, 128, 128, 65536, False, 0),
    "v1_1-small": (8, 512, 6, 64, 1024, True, 0),
    "v1_1-base": (12, 768, 12, 64, 2048, True, 0),
    "v1_1-large": (24, 1024, 16, 64, 2816, True, 0),
    "v1_1-xl": (24, 2048, 32, 64, 5120, True, 0),
    "v1_1-xxl": (24, 4096, 64, 64, 10240, True, 0),
    "switch": (2, 128, 4, 32, 512, False, 4),  # the laptop size with experts
    "switch-base-8": (12, 768, 12, 64, 3072, False, 8),
    "switch-base-64": (12, 768, 12, 64, 3072, False, 64),
    "switch-base-128": (12, 768, 12, 64, 3072, False, 128),
    "switch-large-128": (24, 1024, 16, 64, 4096, False, 128),
}


def get_config(size: str = "") -> ConfigDict:
    config = base("encoder_decoder")
    layers, width, heads, head_size, hidden, gated, experts = pick(SIZES, size, (3, 128, 4, 32, 512, False, 0))
    config.model.update(encoder_layers=layers, decoder_layers=layers, width=width, heads=heads, head_size=head_size)
    config.model.update(hidden=hidden, gated=gated, tied=not gated, scaled_head=not gated)
    config.model.activation = "gelu_tanh" if gated else "relu"
    if experts:
        config.model.update(sparse_every=2, experts=experts)
    config.train.objective = "span"
    config.train.lr = 3e-3
    config.train.lr_source = "the Transformer's at this size"
    if size and size != "switch":
        config.model.vocab = 32128
        config.model.dropout = 0.0 if gated else 0.1  # v1.1 is pre-trained without dropout
        config.train.update(batch=128, length=568, steps=524_288, warmup=10_000, lr=1e-3)
        config.train.lr_source = "ours: the paper trains with Adafactor"
        if experts:
            config.model.update(dropout=0.0, expert_capacity_factor=1.25, expert_jitter=0.01)
    return config
