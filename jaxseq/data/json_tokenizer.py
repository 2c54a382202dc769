"""A tokenizer in the `tokenizers` JSON format: what `jaxseq tokenizer` and `transformers` save as tokenizer.json."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxseq import paths
from jaxseq.data import long_text, tokenizer_files
from jaxseq.errors import UserError

# Names of the end-of-text token in published tokenizers, the more specific first.
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "<EOS>", "<|im_end|>", "[SEP]")
LARGEST_ID = 1 << 22  # the largest published vocabularies have about 260,000 ids, and a model has a row for each
TRIAL = "a The naïve café, 12 345!\n\tx=1 日本語 😀 \U000f0000"  # the last character is not in any vocabulary


class JsonTokenizer:
    """`encode` returns only the ids of the text: truncation, padding and special tokens are switched off.

    boundary: the end-of-text token: the eos_token of a tokenizer_config.json in the same folder, else one of END_OF_TEXT, else
    the first id that the post-processor adds after a text, else a new id after the last.
    begin: the ids that the post-processor adds before a text, such as that of "<s>"; often none.
    """

    def __init__(self, path: str | Path):
        import tokenizers

        self.path = paths.of(path)
        self.name = self.path.name
        self._field = f"data.tokenizer={path}"
        data = tokenizer_files.contents(path, self._field)
        with self._faults(quiet=True):
            self._tokenizer = tokenizers.Tokenizer.from_str(data.decode())
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            self._tokenizer.encode_special_tokens = True
            ids = self._tokenizer.get_vocab(with_added_tokens=True)
            self._tokenizer.decode(self._tokenizer.encode(TRIAL).ids)
            self.begin, behind = self._additions(sorted(ids, key=ids.get)[:64])
            given = self._given(ids)
        if not ids:
            raise UserError(f"{self._field} has an empty vocabulary; make one with `jaxseq tokenizer`")
        if (largest := max(ids.values())) >= LARGEST_ID:
            raise UserError(f"{self._field} has the id {largest}, and a model needs a row for each; give another file")
        self.vocab = largest + 1
        self.storage = np.dtype(np.uint16 if self.vocab <= 1 << 16 else np.uint32)
        named = tokenizer_files.special(tokenizer_files.beside(path, tokenizer_files.CONFIG), "eos_token")
        known = [ids[name] for name in (named, *END_OF_TEXT) if name in ids]
        self.boundary = (known or behind or [self.vocab])[0]
        self.vocab = max(self.vocab, self.boundary + 1)
        self.start = self.begin[-1] if self.begin else self.boundary
        self.text_vocab = max(given, default=0) + 1
        stops = tokenizer_files.beside(path, tokenizer_files.GENERATION).get("eos_token_id")
        self.ends = tuple(dict.fromkeys((self.boundary, *tokenizer_files.ids(stops))))
        self._silent = {self.boundary, *self.begin}
        self.fingerprint = hashlib.blake2b(data, digest_size=16).hexdigest()

    @contextlib.contextmanager
    def _faults(self, quiet: bool = False) -> Iterator[None]:
        """Turns every error of the file into a UserError. quiet: suppresses the trace that a panic of the library prints."""
        try:
            with _standard_error_kept() if quiet else contextlib.nullcontext():
                yield
        except (KeyboardInterrupt, SystemExit, UserError):
            raise
        except BaseException as error:  # tokenizers raises bare Exception, and panics are not subclasses of it
            raise UserError(
                f"{self._field} is not a tokenizers JSON file ({_reason(error)}); make one with `jaxseq tokenizer`"
            ) from error

    def _additions(self, texts: Sequence[str]) -> tuple[tuple[int, ...], list[int]]:
        """Ids that the post-processor adds before and after a text."""
        for text in ("a", *texts):  # the first text that gives a token
            encoding = self._tokenizer.encode(text, add_special_tokens=True)
            own = [i for i, added in enumerate(encoding.special_tokens_mask) if not added]
            if own:
                return tuple(encoding.ids[: own[0]]), encoding.ids[own[-1] + 1 :]
        return (), []

    def _given(self, ids: dict[str, int]) -> set[int]:
        """The ids that a text can produce, without special tokens, because text is never parsed for them."""
        special = {i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        given = set(ids.values()) - special
        spelled = [token for token, i in ids.items() if i in special] + [TRIAL]
        for encoding in self._tokenizer.encode_batch_fast(spelled, add_special_tokens=False):
            given |= set(encoding.ids)
        return given

    def encode(self, text: str | bytes, special: bool = False) -> np.ndarray:
        """Text (str, or its UTF-8 bytes) to ids [T] int32, without a boundary.

        special: whether special tokens that the text spells out are these tokens, as in what a chat template renders.
        """
        text = text if isinstance(text, str) else text.decode()
        with self._faults():
            self._tokenizer.encode_special_tokens = not special
            try:
                ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            finally:
                self._tokenizer.encode_special_tokens = True
        return np.asarray(ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """As `encode`, document by document, in the dtype `storage`, over all cores."""
        with self._faults():
            return [np.asarray(ids, self.storage) for ids in long_text.encode_batch(self._tokenizer, texts)]

    def prompt(self, text: str) -> list[int]:
        """The ids of a prompt: those that the post-processor adds before a text, then those of the text. An empty prompt is
        the start of a document."""
        return [*self.begin, *self.encode(text).tolist()] or [self.start]

    def decode(self, ids: Sequence[int], after: Sequence[int] = ()) -> str:
        """Ids to text. Boundaries are dropped; bytes that are not UTF-8 become U+FFFD. after: the ids before them. Some
        decoders drop the first space of a text, but not of a continuation."""
        if len(after):
            stream = self.stream(after)
            return "".join(map(stream.push, ids)) + stream.finish()
        kept = [int(token) for token in ids if token not in self._silent and 0 <= token < self.vocab]
        with self._faults():
            return self._tokenizer.decode(kept, skip_special_tokens=False)

    def find(self, *names: str) -> int | None:
        """The id of the first of these special tokens that exists, such as find("[MASK]", "<mask>")."""
        return next((found for name in names if (found := self._tokenizer.token_to_id(name)) is not None), None)

    def bytes_per_token(self, ids: Sequence[int]) -> float:
        """UTF-8 bytes of text per token of `ids`, boundaries not counted."""
        kept = [int(token) for token in ids if token not in self._silent]
        return len(self.decode(kept).encode()) / max(1, len(kept))

    def stream(self, after: Sequence[int] = ()) -> "JsonStream":
        """An incremental decoder for the ids after `after`."""
        return JsonStream(self, after)

    def file(self) -> tuple[str, bytes]:
        """(name, contents) of the file that other libraries read."""
        return "tokenizer.json", tokenizer_files.contents(self.path, self._field)


class JsonStream:
    """Decodes a window of tokens again at each push, and returns the text that can no longer change.

    A token's text may depend on earlier tokens (SentencePiece drops a leading space, and decodes consecutive bytes
    together), so the window also keeps the last tokens whose text was already returned. Text that ends with U+FFFD may
    be an incomplete character and is held back. If it is held for more tokens than a character has, only its last three
    U+FFFD stay held back (UTF-8 has at most four bytes per character).
    """

    HELD = 8  # tokens
    CONTEXT = 256  # tokens before the first

    def __init__(self, tokenizer: JsonTokenizer, after: Sequence[int] = ()):
        self._tokenizer = tokenizer
        after = list(map(int, after))
        start, end = self._characters(after)
        self._window = after[start:]
        self._finished = end - start  # tokens of the window whose text was returned
        known = tokenizer.decode(after[start:end]), tokenizer.decode(self._window).rstrip("\ufffd")
        self._out = max(map(len, known))  # returned characters of the window's text; some may belong to the last token

    def _characters(self, after: list[int]) -> tuple[int, int]:
        """(start, end) of about the last CONTEXT ids, cut between characters: SentencePiece decodes a run of bytes only if all
        are whole characters."""
        first, last = max(0, len(after) - self.CONTEXT), len(after)
        for end in range(last, max(first, last - self.HELD), -1):
            for start in range(first, max(-1, first - self.HELD), -1):
                text = self._tokenizer.decode(after[start:end])
                if not text.startswith("\ufffd") and not text.endswith("\ufffd"):
                    return start, end
        return first, last

    def push(self, token: int) -> str:
        if token in self._tokenizer._silent:
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


@contextlib.contextmanager
def _standard_error_kept() -> Iterator[None]:
    """Buffers output to standard error, also of the library's threads, and drops it if the block fails."""
    with tempfile.TemporaryFile() as kept:
        try:
            own = os.dup(2)
        except OSError:  # there is none
            yield
            return
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(own, 2)
            os.close(own)
        kept.seek(0)
        os.write(2, kept.read())


def _reason(error: BaseException) -> str:
    """The first line of an exception's message."""
    return (str(error) or type(error).__name__).splitlines()[0]
