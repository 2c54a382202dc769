"""Whether a tokenizer gives back the text that it was given.

One that does not ([UNK] for what it lacks, lower-cased or dropped text) has fewer things to predict: its bits per byte are
lower than those of a tokenizer that keeps all, and the two cannot be compared.
"""

from collections.abc import Sequence

DOCUMENTS = 16  # of each batch of documents, evenly spaced
CHARACTERS = 2000  # of each of them
SHOWN = 16  # characters of a difference


def difference(tokenizer, texts: Sequence[str]) -> str | None:
    """The first difference between a sample of `texts` and what is read back of it, in words; None where there is none.

    A space in front, which tokenizers of the SentencePiece kind add and take away, is none.
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
