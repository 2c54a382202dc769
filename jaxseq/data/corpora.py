"""A corpus: tokenised documents in two splits, training and validation (given, else every n-th document)."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple, overload

import numpy as np
from ml_collections import ConfigDict

from jaxseq.data import files
from jaxseq.data.readers import Document
from jaxseq.data.sources import Source, source
from jaxseq.data.sources.mixture import repeats
from jaxseq.data.store import Store, store
from jaxseq.data.tokenizers import ByteTokenizer, Tokenizer
from jaxseq.data.tokenizers import tokenizer as open_tokenizer
from jaxseq.errors import UserError

SPLITS = ("train", "validation")


class Documents(Sequence):
    """The documents of one split, each [1 + tokens] int32, beginning with the id `start`.

    start: the first id of every document. boundary: the id of the end of a document, which is only a target (unless it equals
    `start`). positions: [documents] int64, in the store. lengths: [documents] int64, tokens including `start`.
    n_bytes: [documents] int64, UTF-8 bytes of text.
    """

    def __init__(self, store: Store, positions: np.ndarray, boundary: int, start: int | None = None):
        self.store, self.positions, self.boundary = store, positions, boundary
        self.start = boundary if start is None else start
        self.lengths = np.asarray(store.offsets[positions + 1]) - np.asarray(store.offsets[positions]) + 1
        self.n_bytes = np.asarray(store.n_bytes[positions])

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, i: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, i: slice) -> "Documents": ...
    def __getitem__(self, i):
        if isinstance(i, slice):
            return Documents(self.store, self.positions[i], self.boundary, self.start)
        tokens = self.store[self.positions[i]]
        return np.concatenate([[self.start], tokens]).astype(np.int32)

    def piece(self, i: int, start: int, stop: int) -> np.ndarray:
        """Tokens start to stop - 1 of document i, not counting `start`; a view with the store's dtype."""
        first = self.store.offsets[self.positions[i]]
        return self.store.tokens[first + start : first + stop]


class Corpus(NamedTuple):
    """Training and validation documents. fingerprint: a hash of all tokens and of the split, equal on every machine."""

    name: str
    tokenizer: Tokenizer
    train: Documents
    validation: Documents
    fingerprint: str

    @property
    def train_bytes(self) -> int:
        """UTF-8 bytes of text in the training documents."""
        return int(self.train.n_bytes.sum())

    @property
    def validation_bytes(self) -> int:
        return int(self.validation.n_bytes.sum())

    @property
    def duplicates(self) -> int:
        """The number of validation documents that are also training documents, token by token."""
        train, validation = (found.store.digests[found.positions] for found in (self.train, self.validation))
        return int(np.isin(validation, train).sum())

    @property
    def lossy(self) -> str | None:
        """What the tokenizer loses of a sample of the text, in words; bits per byte are then too low. None: nothing."""
        return self.train.store.lossy or self.validation.store.lossy

    @property
    def damaged(self) -> int:
        """The number of skipped records, see data.skip_records."""
        return sum(store.damaged for store in {id(part.store): part.store for part in (self.train, self.validation)}.values())

    def split(self, name: str) -> Documents:
        if name not in SPLITS:
            raise UserError(f"split {name!r} is unknown; choose one of {', '.join(SPLITS)}")
        documents = getattr(self, name)
        if not len(documents):
            raise UserError(f"{self.name} has no {name} documents; set data.validation_every to 2 or more")
        return documents

    def documents(self, split: str) -> Iterator[tuple[str, np.ndarray, int]]:
        """(id, ids, n_bytes) of each document of "train" or "validation", in the source's order.

        `ids` begins with the tokenizer's `start`. A model is scored on len(ids) targets, ids[1:] + [boundary]: every token and
        the end of the document. Their nats are divided by `n_bytes`.
        """
        documents = self.split(split)
        names = documents.store.ids()
        for i in range(len(documents)):
            yield names[documents.positions[i]], documents[i], int(documents.n_bytes[i])


def _validates(count: int, every: int) -> np.ndarray:
    """[count] bool: True for the validation documents every - 1, 2 every - 1, …; every = 0: no document."""
    return np.arange(1, count + 1) % every == 0 if every else np.zeros(count, bool)


def corpus(config: ConfigDict, tokenizer: Tokenizer | None = None) -> Corpus:
    """Read, tokenise (or take from the cache) and split a corpus.

    Args:
        config: the data section; reads `source`, `path`, `field`, `tokenizer`, `cache`, `cache_gb`, `skip_records` and
            `validation_every` (every n-th document is for validation; 0: none), which is ignored if the source has a
            validation split.

    Raises:
        UserError: wrong input, as described by the message.
    """
    if config.get("stream"):
        raise UserError("data.stream=true is only for train and eval of text; leave it out, since all data are needed here")
    tokenizer = tokenizer or open_tokenizer(config)
    opened = source(config, None if isinstance(tokenizer, ByteTokenizer) else tokenizer.boundary)

    def read(one: Source) -> Store:
        found = store(one, tokenizer, config.cache, config.cache_gb)
        if found.told:
            files.say(found.told)
        return found

    ends = tokenizer.boundary, tokenizer.start
    between = "-".join(map(str, dict.fromkeys(ends)))  # one id where they are the same
    if opened.validation:
        held, validation = read(opened), read(opened.validation)
        chosen = [_repeated(opened, held, np.arange(len(held))), np.arange(len(validation))]
        splits = [Documents(one, index, *ends) for one, index in zip((held, validation), chosen, strict=True)]
        fingerprint = f"{held.fingerprint}-{between}-{validation.fingerprint}"
        return Corpus(opened.name, tokenizer, *splits, _weighted(opened, fingerprint))
    every = config.validation_every
    if every < 0 or every == 1:
        raise UserError(f"data.validation_every={every} leaves nothing to train on; set 2 or more, or 0 for no validation")
    held = read(opened)
    if len(held) < max(1, every):
        mend = f"set data.validation_every to at most {len(held)}" if len(held) > 1 else "give more documents"
        raise UserError(f"{opened.name} has {len(held)} document(s), too few for data.validation_every={every}; {mend}")
    validates = _validates(len(held), every)
    chosen = [_repeated(opened, held, np.flatnonzero(~validates)), np.flatnonzero(validates)]
    splits = [Documents(held, index, *ends) for index in chosen]
    return Corpus(opened.name, tokenizer, *splits, _weighted(opened, f"{held.fingerprint}-{between}-{every}"))


def _repeated(opened: Source, held: Store, index: np.ndarray) -> np.ndarray:
    """The training documents of an epoch; those of a mixture repeated according to the weights of their parts."""
    if opened.weights is None:
        return index
    found = np.repeat(index, repeats(opened.weights, held.ids())[index])
    if not len(found):
        raise UserError(f"{opened.name} leaves nothing to train on; raise the weights")
    return found


def _weighted(opened: Source, fingerprint: str) -> str:
    if opened.weights is None:
        return fingerprint
    weights = hashlib.blake2b(json.dumps(opened.weights).encode(), digest_size=8).hexdigest()
    return f"{fingerprint}-{weights}"


def texts(config: ConfigDict, split: str = "train") -> Iterator[Document]:
    """The documents' text for training a tokenizer, with the same splits as `corpus`."""
    opened = source(config)
    if opened.validation:
        chosen = opened if split == "train" else opened.validation
        yield from (document for document in chosen.read() if document.text)
        return
    kept = (document for document in opened.read() if document.text)
    for number, document in enumerate(kept, 1):
        validates = bool(config.validation_every) and number % config.validation_every == 0
        if validates == (split == "validation"):
            yield document
