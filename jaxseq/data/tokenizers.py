"""Text to token ids and back: plain bytes, any tokenizer saved as a `tokenizers` JSON file, an RWKV vocabulary.

All have the same face: `vocab`, `boundary` (the id put in front of every document, which is also what follows its
last token), `encode`, `encode_batch`, `decode`, `stream` and `fingerprint`. Text is never parsed for special tokens:
a document that spells out "<|endoftext|>" is encoded as those characters, so that `boundary` means the end of a
document and nothing else.
"""

import codecs
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from jaxseq.data.rwkv_world import WorldTokenizer
from jaxseq.errors import UserError

# The names under which published tokenizers keep their end-of-text token, the more specific first.
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "<EOS>", "<|im_end|>", "[SEP]")


class Stream(Protocol):
    """Incremental decoder: text comes out as soon as its bytes are complete."""

    def push(self, token: int) -> str:
        """Take one token id; the text that it completes (often "" inside a multi-byte character)."""

    def finish(self) -> str:
        """What is left: an incomplete character as U+FFFD."""


class ByteTokenizer:
    """UTF-8 bytes: ids 0..255 are the bytes, 256 is the boundary."""

    boundary = 256
    vocab = 257
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

    def decode(self, ids: Sequence[int]) -> str:
        """Ids to text. Boundaries are dropped; bytes that are no UTF-8 become U+FFFD."""
        ids = np.asarray(ids, np.int64).reshape(-1)
        return ids[(ids >= 0) & (ids < 256)].astype(np.uint8).tobytes().decode(errors="replace")

    def find(self, *names: str) -> int | None:
        """The id of the first special token that there is, by its text; bytes have none."""
        return None

    def bytes_per_token(self, ids: Sequence[int]) -> float:
        """UTF-8 bytes of text per token of `ids`, boundaries not counted: 1 for bytes."""
        return 1.0

    def stream(self) -> Stream:
        return _ByteStream()


class _ByteStream:
    def __init__(self):
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(bytes([token])) if 0 <= token < 256 else ""

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class JsonTokenizer:
    """A tokenizer in the `tokenizers` JSON format (what `jaxseq tokenizer` and `transformers` save as tokenizer.json).

    `boundary` is the file's own end-of-text token if it has one of END_OF_TEXT, else one id added after its last.
    Truncation, padding and added special tokens of the file are switched off: a document's ids are those of its text.
    """

    def __init__(self, path: str | Path):
        import tokenizers

        self.path = Path(path)
        self.name = self.path.name
        try:
            text = self.path.read_bytes()
        except OSError as error:
            reason = _reason(error)
            raise UserError(f"data.tokenizer={path} cannot be read ({reason}); give byte or a tokenizers JSON file") from error
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text.decode())
        except Exception as error:  # tokenizers raises bare Exception for every fault of the file
            raise UserError(
                f"data.tokenizer={path} is no tokenizers JSON file ({_reason(error)}); make one with `jaxseq tokenizer`"
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        if not ids:
            raise UserError(f"data.tokenizer={path} has an empty vocabulary; make one with `jaxseq tokenizer`")
        self.vocab = max(ids.values()) + 1
        self.storage = np.dtype(np.uint16 if self.vocab <= 1 << 16 else np.uint32)
        end = next((name for name in END_OF_TEXT if name in ids), None)
        if end is None:
            self.boundary = self.vocab
            self.vocab += 1
        else:
            self.boundary = ids[end]
        self.fingerprint = hashlib.blake2b(text, digest_size=16).hexdigest()

    def encode(self, text: str | bytes) -> np.ndarray:
        """Text (str, or its UTF-8 bytes) to ids [T] int32, without a boundary."""
        text = text if isinstance(text, str) else text.decode()
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """As `encode`, document by document, in the dtype `storage`, over all cores."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, self.storage) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """Ids to text. Boundaries are dropped; bytes that are no UTF-8 become U+FFFD."""
        kept = [int(token) for token in ids if token != self.boundary and 0 <= token < self.vocab]
        return self._tokenizer.decode(kept, skip_special_tokens=False)

    def find(self, *names: str) -> int | None:
        """The id of the first special token that there is, by its text, such as find("[MASK]", "<mask>")."""
        return next((found for name in names if (found := self._tokenizer.token_to_id(name)) is not None), None)

    def bytes_per_token(self, ids: Sequence[int]) -> float:
        """UTF-8 bytes of text per token of `ids`, boundaries not counted."""
        kept = [int(token) for token in ids if token != self.boundary]
        return len(self.decode(kept).encode()) / max(1, len(kept))

    def stream(self) -> Stream:
        return _JsonStream(self)


class _JsonStream:
    """Decodes a window of tokens again at each push, and hands out what can no longer change.

    A token's text may depend on the tokens in front of it (SentencePiece drops a leading space, and decodes bytes in a
    row together), so the window keeps the last stretch whose text is out. Text that ends with U+FFFD may be an
    unfinished character and is held back; when it is held for longer than any character takes, only its last three
    U+FFFD are (UTF-8 has four bytes at most).
    """

    HELD = 8  # tokens

    def __init__(self, tokenizer: JsonTokenizer):
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._finished = 0  # tokens of the window whose text is out
        self._out = 0  # characters of the window's text that are out

    def push(self, token: int) -> str:
        if token == self._tokenizer.boundary:
            return ""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        if text.endswith("\ufffd"):
            if len(self._window) - self._finished < self.HELD:
                return ""
            unsure = len(text) - max(len(text.rstrip("\ufffd")), len(text) - 3)
            piece = text[self._out : len(text) - unsure]
            self._out += len(piece)
            return piece
        piece = text[self._out :]
        if piece:
            self._window = self._window[self._finished :]
            self._finished = len(self._window)
            self._out = len(self._tokenizer.decode(self._window))
        return piece

    def finish(self) -> str:
        piece = self._tokenizer.decode(self._window)[self._out :]
        self._window, self._finished, self._out = [], 0, 0
        return piece


Tokenizer = ByteTokenizer | JsonTokenizer | WorldTokenizer


def tokenizer(config) -> Tokenizer:
    """The tokenizer that the config's data section names.

    Args:
        config: the data section; reads `tokenizer`: "byte", or the path of a tokenizers JSON file or of an RWKV
            vocabulary, whose name ends in .txt.

    Raises:
        UserError: the file is missing, or is none of these.
    """
    if config.tokenizer == "byte":
        return ByteTokenizer()
    return (WorldTokenizer if config.tokenizer.endswith(".txt") else JsonTokenizer)(config.tokenizer)


def _reason(error: Exception) -> str:
    """The first line of what an exception says, for a message of one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0]
