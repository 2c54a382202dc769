"""One id for each letter of a nucleotide sequence: A C G T, N, and the other codes of IUPAC."""

from collections.abc import Sequence

import numpy as np

from jaxseq.data.rwkv_world import ByteStream
from jaxseq.errors import UserError

LETTERS = "ACGTNRYKMSWBDHVU-*"
END = "<|endoftext|>"


class NucleotideTokenizer:
    """Ids 0..3 are A C G T, 4 is N; the boundary comes last. Other letters are refused, not replaced."""

    boundary = start = len(LETTERS)
    begin = ends = (boundary,)
    vocab, text_vocab = len(LETTERS) + 1, len(LETTERS)
    name = "nucleotide"
    fingerprint = "nucleotide-1"
    storage = np.dtype(np.uint8)

    _ids = np.full(256, 255, np.uint8)
    _ids[np.frombuffer(LETTERS.encode(), np.uint8)] = np.arange(len(LETTERS), dtype=np.uint8)
    _letters = np.frombuffer(LETTERS.encode(), np.uint8)

    def _encode(self, data: bytes) -> np.ndarray:
        ids = self._ids[np.frombuffer(data, np.uint8)]
        if len(bad := np.flatnonzero(ids == 255)):
            letter = data[bad[0] : bad[0] + 4].decode(errors="replace")[0]
            raise UserError(f"{letter!r} is not a letter of a nucleotide sequence ({LETTERS}); set data.tokenizer, such as byte")
        return ids

    def encode(self, text: str | bytes) -> np.ndarray:
        """Text (str, or its UTF-8 bytes) to ids [T] int32, without a boundary."""
        return self._encode(text.encode() if isinstance(text, str) else text).astype(np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """As `encode`, document by document, in the dtype `storage`."""
        return [self._encode(text.encode()) for text in texts]

    def prompt(self, text: str) -> list[int]:
        """The ids of a prompt, preceded by the boundary."""
        return [*self.begin, *self.encode(text).tolist()]

    def decode(self, ids: Sequence[int], after: Sequence[int] = ()) -> str:
        """Ids to text. Boundaries are dropped. after: the ids before them, which have no effect."""
        ids = np.asarray(ids, np.int64).reshape(-1)
        return self._letters[ids[(ids >= 0) & (ids < len(LETTERS))]].tobytes().decode()

    def find(self, *names: str) -> int | None:
        """The id of a special token by its text: always None."""
        return None

    def bytes_per_token(self, ids: Sequence[int]) -> float:
        """UTF-8 bytes of text per token of `ids`, boundaries not counted."""
        return 1.0

    def stream(self, after: Sequence[int] = ()) -> ByteStream:
        """An incremental decoder for the ids after `after`."""
        return ByteStream(lambda token: self.decode([token]).encode(), after)

    def file(self) -> tuple[str, bytes]:
        """(name, contents) of a file that other libraries read. It drops other letters."""
        import tokenizers

        model = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(LETTERS)}, []))
        model.decoder = tokenizers.decoders.Fuse()
        model.add_special_tokens([END])
        model.post_processor = tokenizers.processors.TemplateProcessing(f"{END} $A", special_tokens=[(END, self.boundary)])
        return "tokenizer.json", model.to_str().encode()
