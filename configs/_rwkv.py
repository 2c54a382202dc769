"""Shared by the RWKV configs: the network around the blocks, and the optimiser of the released training code."""

from typing import Any

from ml_collections import ConfigDict

from jaxseq.config import base


def frame(stack: str, width: int, rate: dict[str, Any], vocab: int | None) -> ConfigDict:
    """Config with layer norms, also after the embedding, an untied head, and a penalty on the largest logit.

    rate: the learning-rate fields of config.train; vocab: vocabulary of a published size.

    Initial values and optimiser: BlinkDL/RWKV-LM, RWKV-v5/src/model.py, `generate_init_weight` (embedding in U(-1e-4, 1e-4),
    orthogonal head of gain sqrt(vocab / width) / 2), and demo-training-run.sh, also used for RWKV-7.
    """
    config = base()
    config.model.stack = stack
    config.model.width = width
    config.model.tied = False
    config.model.norm = "layernorm"
    config.model.embedding_norm = True
    config.model.embedding_init = "uniform"
    config.model.embedding_std = 1e-4 / 3**0.5
    config.model.head_init = "orthogonal"
    config.model.head_scale = 0.5
    config.model.logit_penalty = 1e-4
    if vocab:
        config.model.vocab = vocab
    config.train.update(rate)
    config.train.beta2 = 0.99
    config.train.eps = 1e-18
    config.train.weight_decay = 0.001
    return config
