"""Encoding a long text part by part: the `tokenizers` library takes more than 100 bytes of memory for each that it encodes.

Each part is encoded with some text before and after it, and gives the tokens that begin inside it. How a text falls into
tokens depends on what stands near, so that these are the tokens of the whole; but for runs of one kind of character, as of
spaces, that are longer than CONTEXT.
"""

from collections.abc import Sequence

import numpy as np

from jaxseq.data.bpe import pieces

WHOLE = 1 << 18  # characters of a text that is encoded at once
CONTEXT = 1 << 10  # characters before and after a part


def encode(model, text: str) -> np.ndarray:
    """The ids [T] uint32 of a text under a `tokenizers.Tokenizer`, without special tokens."""
    found, start = [], 0
    for piece in pieces(text, WHOLE):
        end = start + len(piece)
        low = _low(text, start)
        encoding = model.encode(text[low : end + CONTEXT], add_special_tokens=False)
        ids = [i for i, (at, _) in zip(encoding.ids, encoding.offsets, strict=True) if start <= low + at < end]
        found.append(np.asarray(ids, np.uint32))  # a list of numbers takes ten times as much
        start = end
    return np.concatenate(found)


def _low(text: str, start: int) -> int:
    """Where to begin the context before `start`: in front of a space, if there is one."""
    if start <= 2 * CONTEXT:
        return 0
    at = text.rfind(" ", start - 2 * CONTEXT, start - CONTEXT)
    return at if at >= 0 else start - CONTEXT


def encode_batch(model, texts: Sequence[str]) -> list[Sequence[int]]:
    """As `encode`, text by text; over all cores those that are not long."""
    encoded = iter(model.encode_batch_fast([text for text in texts if len(text) <= WHOLE], add_special_tokens=False))
    return [next(encoded).ids if len(text) <= WHOLE else encode(model, text) for text in texts]
