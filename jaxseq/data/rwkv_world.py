"""The tokenizer of RWKV's World models: greedy longest match in a vocabulary of byte strings, from left to right.

A vocabulary file (rwkv_vocab_v20230424.txt) has a line `ID LITERAL LENGTH` for each word: its id, a Python string or bytes
literal, and its number of bytes. Literals are parsed as data, with their escapes, and never executed.
"""

import ast
import codecs
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxseq import paths
from jaxseq.data import tokenizer_files
from jaxseq.errors import UserError

LARGEST_ID = 1 << 22  # a model's embedding has a row for each id
END = -1  # the key of a word's id in a node of the trie
_LINE = re.compile(r"""(\d{1,9}) (b?(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")) (\d{1,9})""")


class WorldTokenizer:
    """Encodes every text, because every single byte is a word. The boundary is id 0, which is not a word."""

    boundary = start = 0
    begin = ends = (0,)

    def __init__(self, path: str | Path):
        self.path = paths.of(path)
        self.name = self.path.name
        data = tokenizer_files.contents(path, f"data.tokenizer={path}")
        self._words = _read(path, data)
        self._trie = _trie(self._words)
        if (largest := max(self._words)) >= LARGEST_ID:
            raise UserError(f"data.tokenizer={path} has the id {largest}, too large for an embedding; give another file")
        self.vocab = self.text_vocab = largest + 1
        self.storage = np.dtype(np.uint16 if self.vocab <= 1 << 16 else np.uint32)
        self.fingerprint = hashlib.blake2b(data, digest_size=16).hexdigest()

    def _encode(self, data: bytes) -> list[int]:
        trie, tokens, start, size = self._trie, [], 0, len(data)
        while start < size:
            node, i = trie, start
            while i < size and (node := node.get(data[i])) is not None:
                i += 1
                if (found := node.get(END)) is not None:
                    token, end = found, i
            tokens.append(token)
            start = end
        return tokens

    def encode(self, text: str | bytes) -> np.ndarray:
        """Text (str, or its UTF-8 bytes) to ids [T] int32, without a boundary."""
        return np.asarray(self._encode(text.encode() if isinstance(text, str) else text), np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text, with the dtype `storage`."""
        return [np.asarray(self._encode(text.encode()), self.storage) for text in texts]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The words of the ids, joined; the boundary and ids without a word are dropped."""
        return b"".join(self._words.get(int(token), b"") for token in ids)

    def prompt(self, text: str) -> list[int]:
        """The ids of a prompt, beginning with the boundary."""
        return [*self.begin, *self.encode(text).tolist()]

    def decode(self, ids: Sequence[int], after: Sequence[int] = ()) -> str:
        """Ids to text. Boundaries are dropped; bytes that are not UTF-8 become U+FFFD.

        after: the ids before them, which may end in the middle of a character.
        """
        if len(after):
            stream = self.stream(after)
            return "".join(map(stream.push, ids)) + stream.finish()
        return self.decode_bytes(ids).decode(errors="replace")

    def find(self, *names: str) -> int | None:
        """The id of a special token by its text; None, because there are no special tokens."""
        return None

    def bytes_per_token(self, ids: Sequence[int]) -> float:
        """Mean UTF-8 bytes of text per token of `ids`, not counting boundaries."""
        kept = [int(token) for token in ids if token != self.boundary]
        return len(self.decode_bytes(kept)) / max(1, len(kept))

    def stream(self, after: Sequence[int] = ()) -> "ByteStream":
        """An incremental decoder for the ids after `after`."""
        return ByteStream(lambda token: self.decode_bytes([token]), after)

    def file(self) -> tuple[str, bytes]:
        """(name, contents) of the file that other libraries read."""
        return self.name, tokenizer_files.contents(self.path, f"data.tokenizer={self.path}")


class ByteStream:
    """Incremental decoder for tokens of bytes: returns each character as soon as it is complete."""

    def __init__(self, of: Callable[[int], bytes], after: Sequence[int] = ()):
        self._of = of
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token in after[-4:]:  # a character has at most 4 bytes, a token at least one
            self.push(int(token))

    def push(self, token: int) -> str:
        return self._decoder.decode(self._of(token))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


def _read(path: str | Path, data: bytes) -> dict[int, bytes]:
    """{id: word}. Raises UserError that names the wrong line."""
    words: dict[int, bytes] = {}
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"data.tokenizer={path} is not UTF-8; give an RWKV vocabulary or a tokenizers JSON file") from error
    for number, line in enumerate(lines, 1):
        if not line and number == len(lines):
            break
        token, word = _word(line.rstrip("\r"))
        if token is None:
            raise UserError(f"data.tokenizer={path}, line {number} is not `ID LITERAL LENGTH`; is it an RWKV vocabulary?")
        if token == WorldTokenizer.boundary or token in words:
            raise UserError(f"data.tokenizer={path}, line {number}: id {token} is already used; give each word its own id from 1")
        words[token] = word
    known = set(words.values())
    if lost := [byte for byte in range(256) if bytes([byte]) not in known]:
        raise UserError(f"data.tokenizer={path} has no word for byte {lost[0]}: some texts could not be encoded; add it")
    if len(known) < len(words):
        raise UserError(f"data.tokenizer={path} has the same word under two ids; remove one")
    return words


def _word(line: str) -> tuple[int | None, bytes]:
    match = _LINE.fullmatch(line)
    if not match:
        return None, b""
    try:
        literal = ast.literal_eval(match[2])  # the pattern matches exactly one string or bytes literal
        word = literal.encode() if isinstance(literal, str) else literal
    except (ValueError, SyntaxError):  # an invalid escape or a lone surrogate
        return None, b""
    return (int(match[1]), word) if len(word) == int(match[3]) > 0 else (None, b"")


def _trie(words: dict[int, bytes]) -> dict:
    """Nodes {byte: node, END: the id of the word that ends here}."""
    trie: dict = {}
    for token, word in words.items():
        node = trie
        for byte in word:
            node = node.setdefault(byte, {})
        node[END] = token
    return trie
