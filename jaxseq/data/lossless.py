"""Checks whether a tokenizer is lossless: whether decoding restores the text.

A lossy tokenizer ([UNK] for unknown text, lower-casing, dropped text) leaves less to predict. Its bits per byte are too low
and cannot be compared with those of a lossless one.
"""

from collections.abc import Sequence

from jaxseq.data.tokenizers import Tokenizer

DOCUMENTS = 16  # checked per batch of documents, evenly spaced
CHARACTERS = 2000  # checked per document
SHOWN = 16  # characters shown of a difference


def difference(tokenizer: Tokenizer, texts: Sequence[str]) -> str | None:
    """Describes the first difference between a sample of `texts` and its decoded tokens; None if there is none.

    A leading space does not count: tokenizers of the SentencePiece kind add and remove it.
    """
    step = -(-len(texts) // DOCUMENTS) or 1
    for text in texts[::step]:
        sample = text[:CHARACTERS]
        back = tokenizer.decode(tokenizer.encode(sample))
        if back.lstrip(" ") != sample.lstrip(" "):
            return _difference(sample.lstrip(" "), back.lstrip(" "))
    return None


def _difference(text: str, back: str) -> str:
    at = next((i for i, (one, two) in enumerate(zip(text, back, strict=False)) if one != two), min(len(text), len(back)))
    at = max(0, at - 2)
    return f"{text[at : at + SHOWN]!r} is read back as {back[at : at + SHOWN]!r}"
