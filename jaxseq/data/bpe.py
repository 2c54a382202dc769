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
        model.save(str(draft))
        os.replace(draft, out)
    finally:
        draft.unlink(missing_ok=True)
    return model.get_vocab_size()


def _short(texts: Iterable[str]) -> Iterable[str]:
    """Texts as they are, but stretches longer than WORD without a space cut up."""
    for text in texts:
        if len(text) <= WORD or max(map(len, text.split())) <= WORD:
            yield text
        else:
            yield from (text[start : start + WORD] for start in range(0, len(text), WORD))
