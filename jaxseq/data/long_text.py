"""Encodes a long text in parts, because the `tokenizers` library takes more than 100 bytes of memory per byte of text.

Each part is encoded with some context before and after it, and only the tokens that begin inside it are kept. Tokenisation
depends only on nearby text, so the result equals that of the whole text, except in runs of one kind of character, such as
spaces, that are longer than CONTEXT.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxseq.data.bpe import pieces

if TYPE_CHECKING:  # imported where a tokenizer is opened
    import tokenizers

WHOLE = 1 << 18  # characters of a text that is encoded at once
CONTEXT = 1 << 10  # characters before and after a part


def encode(model: "tokenizers.Tokenizer", text: str) -> np.ndarray:
    """The ids [T] uint32 of a text under a `tokenizers.Tokenizer`, without special tokens."""
    found, start = [], 0
    for piece in pieces(text, WHOLE):
        end = start + len(piece)
        low = _low(text, start)
        encoding = model.encode(text[low : end + CONTEXT], add_special_tokens=False)
        ids = [i for i, (at, _) in zip(encoding.ids, encoding.offsets, strict=True) if start <= low + at < end]
        found.append(np.asarray(ids, np.uint32))  # a Python list takes ten times the memory
        start = end
    return np.concatenate(found)


def _low(text: str, start: int) -> int:
    """The beginning of the context before `start`: before a space, if there is one."""
    if start <= 2 * CONTEXT:
        return 0
    at = text.rfind(" ", start - 2 * CONTEXT, start - CONTEXT)
    return at if at >= 0 else start - CONTEXT


def encode_batch(model: "tokenizers.Tokenizer", texts: Sequence[str]) -> list[Sequence[int]]:
    """As `encode`, for several texts; texts that are not long are encoded on all cores."""
    encoded = iter(model.encode_batch_fast([text for text in texts if len(text) <= WHOLE], add_special_tokens=False))
    return [next(encoded).ids if len(text) <= WHOLE else encode(model, text) for text in texts]
