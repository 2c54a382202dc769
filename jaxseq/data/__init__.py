"""Data: sources of documents, tokenizers, and rows of packed tokens.

tokens = tokenizer(config.data)
text = corpus(config.data, tokens)
for batch in batches(config, text): ...
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from ml_collections import ConfigDict

from jaxseq.data.corpora import Corpus, Documents, corpus, texts
from jaxseq.data.tokenizers import ByteTokenizer, JsonTokenizer, Tokenizer, WorldTokenizer, tokenizer, whole_characters

if TYPE_CHECKING:  # grain takes a second to import
    from jaxseq.data.batching import Transform
    from jaxseq.data.packing import Batches

__all__ = [
    "ByteTokenizer",
    "Corpus",
    "Documents",
    "JsonTokenizer",
    "WorldTokenizer",
    "Tokenizer",
    "batches",
    "corpus",
    "rows",
    "texts",
    "tokenizer",
    "whole_characters",
]


def rows(documents: Documents, length: int, seed: int, transform: "Transform | None" = None) -> Iterator[dict[str, np.ndarray]]:
    """One epoch of packed rows in the stream's order; see `batches` for `transform`."""
    from jaxseq.data.batching import random_of
    from jaxseq.data.packing import PackedRows

    packed = PackedRows(documents, length, seed)
    for number in range(len(packed)):
        yield transform(packed[number], random_of(seed, number)) if transform else packed[number]


def batches(
    config: ConfigDict, corpus: Corpus, process_index: int = 0, process_count: int = 1, transform: "Transform | None" = None
) -> "Batches":
    """An endless iterator over batches of packed training rows.

    Yields dicts of arrays [b, T], b = train.batch / process_count: `tokens`, `targets` and `pos` int32, `weights`
    float32 (1, or 0 at padding). `jaxseq.data.packing` describes how documents become rows. `state()` and
    `restore(state)` resume a run exactly where it stopped.

    Args:
        config: reads `train.batch`, `train.length`, `data.seed`, `data.prefetch` (batches built ahead by threads; 0:
        none).
        transform: `transform(row, random)` returns a changed row, with a numpy Generator seeded by data.seed and the
            row's number in the endless sequence: what it draws does not depend on batches, processes or resumption.

    Raises:
        UserError: the batch is not divisible by the number of processes; the training split is empty.
    """
    from jaxseq.data.packing import Batches

    return Batches(config, corpus, process_index, process_count, transform)
