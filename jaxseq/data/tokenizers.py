"""Text to token ids and back: plain bytes, any tokenizer saved as a `tokenizers` JSON file, an RWKV vocabulary.

All have the same interface:

    vocab         number of ids; text_vocab: 1 + the largest id that text can give (padding and reserved ids may follow)
    boundary      the id that ends a document; start: the id before it, often the same; begin: the ids before a prompt
    ends          ids that end generation: the boundary, and those in generation_config.json
    encode, encode_batch, prompt, decode, stream, find, bytes_per_token, file, fingerprint

Text is never parsed for special tokens: a document that spells out "<|endoftext|>" is encoded as those characters, so that
`boundary` only ever means the end of a document.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from ml_collections import ConfigDict

from jaxseq.data import tokenizer_files
from jaxseq.data.json_tokenizer import JsonTokenizer
from jaxseq.data.nucleotide import NucleotideTokenizer
from jaxseq.data.rwkv_world import ByteStream, WorldTokenizer
from jaxseq.errors import UserError

__all__ = ["ByteTokenizer", "JsonTokenizer", "Stream", "Tokenizer", "WorldTokenizer", "tokenizer", "whole_characters"]


class Stream(Protocol):
    """Incremental decoder: returns text as soon as its bytes are complete."""

    def push(self, token: int) -> str:
        """Takes one token id; returns the text that it completes (often "" inside a multi-byte character)."""

    def finish(self) -> str:
        """The rest: an incomplete character as U+FFFD."""


class ByteTokenizer:
    """UTF-8 bytes: ids 0..255 are the bytes, 256 is the boundary."""

    boundary = start = 256
    begin = ends = (256,)
    vocab, text_vocab = 257, 256
    name = "byte"
    fingerprint = "byte-1"
    storage = np.dtype(np.uint8)  # of tokens on disk and in memory: boundaries are not stored

    def encode(self, text: str | bytes) -> np.ndarray:
        """Text (str, or its UTF-8 bytes) to ids [T] int32, without a boundary."""
        data = text.encode() if isinstance(text, str) else text
        return np.frombuffer(data, np.uint8).astype(np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """As `encode`, document by document, in the dtype `storage`."""
        return [np.frombuffer(text.encode(), np.uint8) for text in texts]

    def prompt(self, text: str) -> list[int]:
        """The ids of a prompt, beginning with the boundary."""
        return [*self.begin, *self.encode(text).tolist()]

    def decode(self, ids: Sequence[int], after: Sequence[int] = ()) -> str:
        """Ids to text. Boundaries are dropped; bytes that are not UTF-8 become U+FFFD. after: the ids before them, which may
        end inside a character."""
        ids = np.asarray(ids, np.int64).reshape(-1)
        if len(after):
            stream = self.stream(after)
            return "".join(map(stream.push, ids.tolist())) + stream.finish()
        return ids[(ids >= 0) & (ids < 256)].astype(np.uint8).tobytes().decode(errors="replace")

    def find(self, *names: str) -> int | None:
        """The id of a special token by its text: None, because there are no special tokens."""
        return None

    def bytes_per_token(self, ids: Sequence[int]) -> float:
        """UTF-8 bytes of text per token of `ids`, boundaries not counted: 1 for bytes."""
        return 1.0

    def stream(self, after: Sequence[int] = ()) -> Stream:
        """An incremental decoder for the ids after `after`."""
        return ByteStream(lambda token: bytes([token]) if 0 <= token < 256 else b"", after)

    def file(self) -> tuple[str, bytes]:
        """(name, contents) of a file that other libraries read."""
        from jaxseq.data import bpe

        return "tokenizer.json", bpe.of_bytes().encode()


CHARACTER = 8  # tokens; UTF-8 has at most four bytes per character, and a token rarely less than one byte
Tokenizer = ByteTokenizer | JsonTokenizer | NucleotideTokenizer | WorldTokenizer


def whole_characters(tokenizer: Tokenizer, ids: Sequence[int]) -> Sequence[int]:
    """`ids` without an incomplete character at the end: a prompt that a model can continue."""
    for end in range(len(ids), max(0, len(ids) - CHARACTER), -1):
        if not tokenizer.decode(ids[:end]).endswith("\ufffd"):
            return ids[:end]
    return ids


def tokenizer(config: ConfigDict) -> Tokenizer:
    """The tokenizer that the config's data section names.

    Args:
        config: the data section; reads `tokenizer`: "byte", "nucleotide", or the path of a tokenizers JSON file or of an RWKV
            vocabulary (.txt); "auto" means "byte" here; a run resolves it first.

    Raises:
        UserError: the file is missing or has another format, or the tokenizer of imported weights is unknown.
    """
    if config.tokenizer == tokenizer_files.UNKNOWN:
        raise UserError(
            "these weights were imported without a tokenizer, and ids mean nothing without it; name it in "
            "data.tokenizer (generate: --tokenizer): a tokenizers JSON file, an RWKV vocabulary, or byte"
        )
    if config.tokenizer in tokenizer_files.BYTES:
        return ByteTokenizer()
    if config.tokenizer == "nucleotide":
        return NucleotideTokenizer()
    return (WorldTokenizer if config.tokenizer.endswith(".txt") else JsonTokenizer)(config.tokenizer)
