"""BERT: a bidirectional encoder that fills in masked tokens (Devlin et al. 2019, arXiv:1810.04805).

Claim: bidirectional attention gives better representations for understanding text; it does not generate text.
Expected: a slow start: 3.0 nats per masked byte, the entropy of letter frequencies, after 300 steps of the laptop size.
Command: jaxseq train --config=bert --workdir=runs/bert
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick

# name: layers, width, heads, hidden, lr; §3 and appendix A.2. MiniLM-L6 (Wang et al. 2020, arXiv:2002.10957; six of its layers)
SIZES = {
    "base": (12, 768, 12, 3072, 1e-4),
    "large": (24, 1024, 16, 4096, 1e-4),
    "minilm-l6": (6, 384, 12, 1536, 1e-4),
}


def get_config(size: str = "") -> ConfigDict:
    config = base("encoder")
    layers, width, heads, hidden, lr = pick(SIZES, size, (4, 128, 4, 512, 3e-3))
    config.model.update(layers=layers, width=width, heads=heads, hidden=hidden)
    if size:
        config.model.vocab = 30522  # WordPiece, uncased
        config.model.dropout = 0.1
        config.train.update(batch=256, length=512, steps=1_000_000, warmup=10_000, schedule="linear", final_lr=0.0)
        config.train.update(beta2=0.999, eps=1e-6, weight_decay=0.01)
    config.train.objective = "masked"
    config.train.lr = lr
    config.train.lr_source = "the paper's" if size else "the Transformer's"
    return config
