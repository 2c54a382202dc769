"""Training a byte-level BPE tokenizer on a corpus."""

import os
import sys
import uuid
from collections.abc import Iterable
from pathlib import Path

from jaxseq.errors import UserError

END = "<|endoftext|>"
SMALLEST = 257  # the 256 bytes and the end of text
WORD = 512  # characters; training time grows with the longest stretch that has no word break (DNA has none at all)


def train(texts: Iterable[str], vocab: int, out: str | Path) -> int:
    """Train a byte-level BPE (as GPT-2's: every text encodes, and decodes to itself) and write a tokenizers JSON file.

    Args:
        texts: the documents, read once.
        vocab: ids in all: 256 bytes, "<|endoftext|>" (the boundary between documents) and vocab - 257 merges.
        out: the file to write; its folder is made.

    Returns:
        the vocabulary's size, which is less than `vocab` when the texts hold no more pairs to merge.

    Raises:
        UserError: a vocabulary without room for the bytes; an `out` that cannot be written.
    """
    import tokenizers

    if vocab < SMALLEST:
        raise UserError(f"a vocabulary of {vocab} has no room for the bytes and the end of text; set it to {SMALLEST} or more")
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
        model.train_from_iterator(_short(texts), trainer)
        model.post_processor = _after_the_end()
        model.save(str(draft))
        os.replace(draft, out)
    finally:
        draft.unlink(missing_ok=True)
    return model.get_vocab_size()


def of_bytes() -> str:
    """A tokenizers JSON text that does what `jaxseq.data.ByteTokenizer` does: id i is byte i, 256 the end of text."""
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
    """A text begins as a document does: after the end of another."""
    import tokenizers

    return tokenizers.processors.TemplateProcessing(single=f"{END} $A", pair=f"{END} $A {END} $B:1", special_tokens=[(END, end)])


def _short(texts: Iterable[str]) -> Iterable[str]:
    """Texts as they are, but stretches longer than WORD without a space cut up."""
    for text in texts:
        if len(text) <= WORD or max(map(len, text.split())) <= WORD:
            yield text
        else:
            yield from (text[start : start + WORD] for start in range(0, len(text), WORD))
