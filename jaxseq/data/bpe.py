"""Training a byte-level BPE tokenizer on a corpus."""

import os
import sys
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxseq.data import files
from jaxseq.errors import UserError

END = "<|endoftext|>"
SMALLEST = 257  # the 256 bytes and the end of text
WORD = 512  # characters; training time grows with the longest part that has no word break (DNA has none at all)
PIECE = 1 << 16  # characters passed to the trainer at a time
DISTINCT = 6 << 20  # characters of all distinct words; the trainer takes up to 100 bytes of memory for each
WORD_COST = 8  # cost of a word in addition to its characters


def train(texts: Iterable[str], vocab: int, out: str | Path) -> int:
    """Train a byte-level BPE like GPT-2's, which encodes every text without loss, and write a tokenizers JSON file.

    Args:
        texts: the documents, read once.
        vocab: total number of ids: 256 bytes, "<|endoftext|>" (the boundary between documents) and vocab - 257 merges.
        out: the file to write; its folder is created.

    Returns:
        the vocabulary's size, which is less than `vocab` if the texts have no more pairs to merge.

    Raises:
        UserError: a vocabulary smaller than the bytes; an `out` that cannot be written.
    """
    import tokenizers

    if vocab < SMALLEST:
        raise UserError(f"a vocabulary of {vocab} cannot hold the bytes and the end of text; set it to {SMALLEST} or more")
    out = Path(out).expanduser()
    draft = out.with_name(f"{out.name}.{uuid.uuid4().hex}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft.touch()
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror or error}); give another --out") from error
    try:
        model = tokenizers.Tokenizer(tokenizers.models.BPE())
        model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=[END],
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=sys.stderr.isatty(),
        )
        bounded = _Bounded(texts)
        model.train_from_iterator(bounded, trainer)
        if bounded.left:
            files.say(f"{bounded.left / 1e6:.3g} M characters of rare words were left out of the training, to bound its memory")
        model.post_processor = _after_the_end()
        draft.write_text(model.to_str(pretty=True), encoding="utf-8")  # `save` takes no path that is not UTF-8
        os.replace(draft, out)
    finally:
        draft.unlink(missing_ok=True)
    return model.get_vocab_size()


def of_bytes() -> str:
    """A tokenizers JSON text equivalent to `jaxseq.data.ByteTokenizer`: id i is byte i, 256 the end of text."""
    import tokenizers

    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in visible]  # GPT-2 writes these as the characters from 256 on
    letters = {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    model = tokenizers.Tokenizer(tokenizers.models.BPE({letters[byte]: byte for byte in range(256)}, []))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens([END])
    model.post_processor = _after_the_end(256)
    return model.to_str()


def _after_the_end(end: int = 0):
    """A post-processor that puts the end-of-text token before a text, as before a document."""
    import tokenizers

    return tokenizers.processors.TemplateProcessing(single=f"{END} $A", pair=f"{END} $A {END} $B:1", special_tokens=[(END, end)])


class _Bounded:
    """Texts in pieces of bounded size, with a bounded number of distinct words, because the trainer keeps every distinct word.

    Pieces end before a space, where words end anyway. Text without a space for WORD characters is cut. When the distinct words
    have DISTINCT characters in total, new words are left out.

    left: characters of the words left out.
    """

    def __init__(self, texts: Iterable[str]):
        self._texts, self._words, self._remaining, self.left = texts, set(), DISTINCT, 0

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            for piece in pieces(text):
                words = piece.split()
                if len(piece) > WORD and max(map(len, words), default=0) > WORD:
                    words = [word[at : at + WORD] for word in words for at in range(0, len(word), WORD)]
                    piece = " ".join(words)
                if kept := self._kept(piece, words):
                    yield kept

    def _kept(self, piece: str, words: list[str]) -> str:
        new = [word for word in dict.fromkeys(words) if word not in self._words]
        cost = sum(map(len, new)) + WORD_COST * len(new)
        if cost <= self._remaining:
            self._words.update(new)
            self._remaining -= cost
            return piece
        gone = set(new)
        self.left += sum(len(word) for word in words if word in gone)
        return " ".join(word for word in words if word not in gone)


def pieces(text: str, size: int = PIECE) -> Iterator[str]:
    """A text in pieces of at most about `size` characters; all but the first begin with white space if there is any."""
    start = 0
    while len(text) - start > size:
        end = max(text.rfind(" ", start + 1, start + size), text.rfind("\n", start + 1, start + size))
        while end > start + 1 and text[end - 1].isspace():
            end -= 1
        end = end if end > start else start + size
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]
