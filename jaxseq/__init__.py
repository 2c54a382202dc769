"""jaxseq: what should replace the Transformer? Sequence models in JAX, each one function in three forms.

One dimension key for the whole project; arrays carry it as a suffix (`q_BTHK`), einsum uses the same letters:

    B batch
    T time (of queries)                S time of keys, slots of a state
    C tokens of a chunk                Z chunks, or chunks of queries; U chunks of keys
    H heads                            G key/value heads; R query heads a key head, rank of a low-rank map
    K key size                         V value size (of a model: vocabulary, classes)
    D width, channels                  F hidden width, frequencies
    N state size; tokens of all rows   M real numbers of a state (2 N of N complex ones); masked tokens
    W taps of a filter                 O long convolutions of a Hyena operator
    P parts of a projection; points    E experts; A experts chosen for a token
    Y rows, X columns of an image      L layers; levels of the past or of images
    I inputs of a map; queries of a tile or a block         J outputs of a map; keys of a tile of a kernel

A digit is an axis of that size (`start_BT1`).
"""

import os
from typing import Any

from jaxseq.config import config, names
from jaxseq.convert import from_pretrained, save_pretrained
from jaxseq.errors import UserError
from jaxseq.generation import generate
from jaxseq.models import build

__all__ = ["UserError", "build", "config", "from_pretrained", "generate", "load", "names", "save_pretrained"]
__version__ = "0.1.0"


def load(workdir: str | os.PathLike, step: int | None = None) -> tuple[Any, Any, Any]:
    """(model, params, tokenizer) of a workdir's checkpoint, the latest by default, as `generate` takes them.

    params: all collections, {"params": …, "batch_stats": …}, if the model has several. tokenizer: None for a model without a
    vocabulary. Raises UserError if there is no such workdir or checkpoint.
    """
    from jaxseq import data, train  # loading them takes seconds

    model, params, config = train.load(workdir, step)
    return model, params, data.tokenizer(config.data) if hasattr(model, "vocab") else None
