"""A corpus: tokenised documents, and which of them validate: a split that is given, else every n-th document."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxseq.data import files, mixture
from jaxseq.data.readers import Document
from jaxseq.data.sources import Source, source
from jaxseq.data.store import Store, store
from jaxseq.data.tokenizers import ByteTokenizer, Tokenizer
from jaxseq.data.tokenizers import tokenizer as open_tokenizer
from jaxseq.errors import UserError

SPLITS = ("train", "validation")


class Documents(Sequence):
    """The documents of one split, each [1 + tokens] int32 with the tokenizer's `start` in front (often its boundary).

    start: the id in front of a document. boundary: the id that is its end, a target and no input unless it is `start` too.
    index: [documents] int64, where each stands in the store. lengths: [documents] int64, tokens with the start.
    n_bytes: [documents] int64, UTF-8 bytes of text.
    """

    def __init__(self, store: Store, index: np.ndarray, boundary: int, start: int | None = None):
        self.store, self.index, self.boundary = store, index, boundary
        self.start = boundary if start is None else start
        self.lengths = np.asarray(store.offsets[index + 1]) - np.asarray(store.offsets[index]) + 1
        self.n_bytes = np.asarray(store.n_bytes[index])

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return Documents(self.store, self.index[i], self.boundary, self.start)
        tokens = self.store[self.index[i]]
        return np.concatenate([[self.start], tokens]).astype(np.int32)

    def piece(self, i: int, start: int, stop: int) -> np.ndarray:
        """Tokens start..stop-1 of document i, counted without the boundary, in the store's dtype and without a copy."""
        first = self.store.offsets[self.index[i]]
        return self.store.tokens[first + start : first + stop]


class Corpus(NamedTuple):
    """Two sequences of documents. fingerprint: of all tokens and of the split; the same on every machine."""

    name: str
    tokenizer: Tokenizer
    train: Documents
    validation: Documents
    fingerprint: str

    @property
    def train_bytes(self) -> int:
        """UTF-8 bytes of text of the training documents."""
        return int(self.train.n_bytes.sum())

    @property
    def validation_bytes(self) -> int:
        return int(self.validation.n_bytes.sum())

    @property
    def duplicates(self) -> int:
        """How many validation documents stand among the training documents too, token by token."""
        train, validation = (found.store.digests[found.index] for found in (self.train, self.validation))
        return int(np.isin(validation, train).sum())

    @property
    def lossy(self) -> str | None:
        """What the tokenizer loses of a sample of the text, in words; bits per byte under it are too low. None: nothing."""
        return self.train.store.lossy or self.validation.store.lossy

    @property
    def damaged(self) -> int:
        """How many records were left out, see data.skip_records."""
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

        `ids` has the tokenizer's `start` in front. What a model is scored on are the len(ids) targets ids[1:] + [boundary]:
        every token and the end of the text. `n_bytes` is what its nats are divided by.
        """
        documents = self.split(split)
        names = documents.store.ids()
        for i in range(len(documents)):
            yield names[documents.index[i]], documents[i], int(documents.n_bytes[i])


def _validates(count: int, every: int) -> np.ndarray:
    """[count] bool: documents every - 1, 2 every - 1, … validate. every = 0: none does."""
    return np.arange(1, count + 1) % every == 0 if every else np.zeros(count, bool)


def corpus(config, tokenizer: Tokenizer | None = None) -> Corpus:
    """Read, tokenise (or take from the cache) and split a corpus.

    Args:
        config: the data section; reads `source`, `path`, `field`, `tokenizer`, `cache`, `cache_gb`, `skip_records` and
            `validation_every` (every n-th document validates; 0: none, all train), which is not asked where the source has a
            validation split.

    Raises:
        UserError: the input is wrong in a way that the message tells.
    """
    if config.get("stream"):
        raise UserError("data.stream=true is for train and eval of text: this needs all of the data; leave it out")
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
        raise UserError(f"{opened.name} has {len(held)} document(s), too few to validate on every {every}th; {mend}")
    validates = _validates(len(held), every)
    chosen = [_repeated(opened, held, np.flatnonzero(~validates)), np.flatnonzero(validates)]
    splits = [Documents(held, index, *ends) for index in chosen]
    return Corpus(opened.name, tokenizer, *splits, _weighted(opened, f"{held.fingerprint}-{between}-{every}"))


def _repeated(opened: Source, held: Store, index: np.ndarray) -> np.ndarray:
    """The training documents of an epoch: each as often as the weight of its part says."""
    if opened.weights is None:
        return index
    found = np.repeat(index, mixture.repeats(opened.weights, held.ids())[index])
    if not len(found):
        raise UserError(f"{opened.name} leaves nothing to train on; raise the weights")
    return found


def _weighted(opened: Source, fingerprint: str) -> str:
    if opened.weights is None:
        return fingerprint
    weights = hashlib.blake2b(json.dumps(opened.weights).encode(), digest_size=8).hexdigest()
    return f"{fingerprint}-{weights}"


def texts(config, split: str = "train") -> Iterator[Document]:
    """The documents' text, as a tokenizer is trained on it: split as `corpus` splits."""
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
