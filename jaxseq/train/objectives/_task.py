"""The interface between an objective's data and the training loop, and the code that all text objectives share."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseq import data, registry
from jaxseq.data import streaming
from jaxseq.data.tokenizers import Tokenizer
from jaxseq.errors import UserError
from jaxseq.evaluation.bits_per_byte import Between, nothing
from jaxseq.train.objectives import _held_out


def apply(
    model: nn.Module, variables: dict, *inputs: Any, rng: jax.Array, train: bool, **more: Any
) -> tuple[Any, jax.Array, dict]:
    """(the model's output, the sum of the losses that it sowed, its updated collections).

    Sown losses (router losses, logit penalties) are means over tokens and already scaled. Collections change only in training.
    """
    own = [name for name in variables if name != "params"]
    outputs, changed = model.apply(
        variables, *inputs, train=train, rngs={"dropout": rng}, mutable=["losses", *own] if train else ["losses"], **more
    )
    sown = jax.tree.leaves(changed.get("losses", {}))
    losses = sum((jnp.sum(leaf) for leaf in sown), start=jnp.zeros((), jnp.float32))
    return outputs, losses, {name: changed[name] for name in own if name in changed}


def masked_sum(weights: jax.Array, values: jax.Array) -> jax.Array:
    """Sum of weights * values where the weight is positive. Other values are ignored, even inf or nan."""
    return jnp.sum(jnp.where(weights > 0, weights * values, 0))


def with_vocab(config: ConfigDict, tokenizer: Tokenizer, more: int = 0) -> ConfigDict:
    """`config` with an empty model.vocab set to the tokenizer's number of ids plus `more` ids of the objective.

    Raises UserError if a given model.vocab is too small for ids that rows can contain. Ids that never occur in text (padding,
    reserved tokens) may exceed it, as in some published models.
    """
    vocab, wanted = config.model.vocab, tokenizer.vocab + more
    if vocab is None:
        config = config.copy_and_resolve_references()
        config.model.vocab = wanted
        return config
    if more and vocab < wanted:
        extra = f" and {more} of train.objective={config.train.objective}"
        raise UserError(f"model.vocab={vocab} is smaller than the tokenizer's {tokenizer.vocab} ids{extra}; leave it empty")
    if vocab < tokenizer.text_vocab:
        raise UserError(
            f"model.vocab={vocab} is too small: texts have ids up to {tokenizer.text_vocab - 1} with tokenizer {tokenizer.name}; "
            "name the tokenizer of these weights in data.tokenizer, or leave model.vocab empty for new ones"
        )
    if vocab <= (last := max(tokenizer.boundary, tokenizer.start)):
        raise UserError(
            f"model.vocab={vocab} has no id for the end of a document, {last} with the tokenizer {tokenizer.name}; "
            "name its eos_token in a tokenizer_config.json beside it, or leave model.vocab empty for new weights"
        )
    return config


def sample(documents: data.Documents, tokens: int) -> data.Documents:
    """Documents at equal distances with about `tokens` tokens together; all documents if they have fewer, or for 0."""
    total = int(documents.lengths.sum())
    if not tokens or total <= tokens:
        return documents
    chosen = np.linspace(0, len(documents) - 1, max(1, round(len(documents) * tokens / total))).round().astype(np.int64)
    chosen = chosen[: max(1, int((np.cumsum(documents.lengths[chosen]) <= tokens).sum()))]
    return data.Documents(documents.store, documents.positions[chosen], documents.boundary, documents.start)


def repeated(corpus: data.Corpus) -> int:
    """The number of validation documents that are also training documents, token by token."""
    held, train = corpus.validation, corpus.train
    content = lambda part, i: hash(part.piece(i, 0, int(part.lengths[i]) - 1).tobytes())  # noqa: E731
    keys = [content(held, i) for i in range(len(held))]
    alike = np.flatnonzero(np.isin(train.lengths, held.lengths))  # only these can be equal; others are not read
    found = set(keys).intersection(content(train, i) for i in alike)
    return sum(key in found for key in keys)


def bytes_per_token(corpus: data.Corpus | streaming.StreamedCorpus) -> float | None:
    """Mean UTF-8 bytes per training token; a document boundary is a token of 0 bytes. None if unknown."""
    if isinstance(corpus, streaming.StreamedCorpus):  # only its validation documents have been read
        return int(corpus.validation.n_bytes.sum()) / int(corpus.validation.lengths.sum()) if len(corpus.validation) else None
    return corpus.train_bytes / max(int(corpus.train.lengths.sum()), 1)


class Task:
    """The data of a run and the evaluation of a model on them. Large data are read at their first use.

    config: the config of the run, with the fields that depend on the data (vocabulary, number of classes) filled in.
    figures: names in the result of `evaluate` that a run records.
    bytes_per_token: bytes of text per token, if the objective's `nats` are those of text tokens; else None.
    """

    figures: ClassVar[tuple[str, ...]] = ("loss", "accuracy")
    bytes_per_token: float | None = None
    config: Any

    def batches(self, process_index: int, process_count: int) -> Iterator[dict[str, np.ndarray]]:
        """Endless iterator over this process's rows of every batch, with methods `state()` and `restore(state)`."""
        raise NotImplementedError

    @property
    def validates(self) -> bool:
        """Whether there are validation data."""
        raise NotImplementedError

    def sizes(self) -> dict[str, dict[str, int | None]]:
        """{"train": {"documents", "tokens"}, "validation": {…, "scored"}}, with tokens counted as by the objective's `tokens`.

        scored: the number of tokens that `evaluate` scores. With data.stream documents and tokens of "train" are None, and it
        also has "files", "bytes" (on disk) and "shuffled" (tokens per shuffled block).
        """
        raise NotImplementedError

    def repeated(self) -> int:
        """The number of validation documents that are also training documents; 0 if unknown."""
        return 0

    def damaged(self) -> int:
        """The number of records skipped so far, see data.skip_records."""
        return 0

    def lossy(self) -> str | None:
        """What the tokenizer loses of the text, in words; None if nothing."""
        return None

    def check(self, model: nn.Module) -> None:
        """Raises UserError for settings that would otherwise fail in `evaluate`, after the last step."""
        if self.config.eval.batch < 1:
            raise UserError(f"eval.batch={self.config.eval.batch} is not positive; set it to 1 or more")
        for name in ("documents", "tokens"):
            if self.config.eval[name] < 0:
                raise UserError(f"eval.{name}={self.config.eval[name]} is negative; set it to 0 for all")

    def evaluate(
        self, model: nn.Module, variables: dict[str, Any], split: str = "validation", *, mesh: Mesh | None = None,
        between: Between = nothing,
    ) -> dict[str, Any]:  # fmt: skip
        """Figures for about eval.tokens tokens of a split (0: all), as JSON data.

        between: called repeatedly during the evaluation; an exception that it raises ends the evaluation.
        """
        raise NotImplementedError

    def describe(self, result: dict[str, Any]) -> str:
        """A result of `evaluate` as one line of text."""
        return ", ".join(f"{name} {result[name]:.4f}" for name in self.figures)


def check_model(config: ConfigDict, *fields: str) -> None:
    """Raises UserError if one of these fields, which the objective needs, is missing or empty in config.model."""
    missing = [field for field in fields if not config.model.get(field)]
    if missing:
        raise UserError(
            f"train.objective={config.train.objective} cannot train model.kind={config.model.kind} (it needs "
            f"model.{missing[0]}); change one of the two"
        )


def check_corruption(config: ConfigDict) -> None:
    """Raises UserError if train.corruption, the fraction of corrupted tokens, is not between 0 and 1."""
    if not 0 < config.train.corruption < 1:
        raise UserError(f"train.corruption={config.train.corruption} is not between 0 and 1; give a fraction such as 0.15")


class TextTask(Task):
    """Packed rows of a corpus, each passed through `transform` if there is one.

    more: the number of ids that the objective adds after those of the tokenizer.
    """

    transform: Callable | None = None  # see jaxseq.data.batches

    def __init__(self, config, more: Callable[[Tokenizer], int] = lambda tokenizer: 0):
        self.tokenizer = data.tokenizer(config.data)
        self.config = with_vocab(config, self.tokenizer, more(self.tokenizer))

    @functools.cached_property
    def corpus(self) -> "data.Corpus | streaming.StreamedCorpus":
        if self.config.data.stream:
            return streaming.stream(self.config.data, self.config.eval.tokens, self.tokenizer)
        return data.corpus(self.config.data, self.tokenizer)

    @property
    def validates(self) -> bool:
        return len(self.corpus.validation) > 0

    def repeated(self) -> int:
        return 0 if isinstance(self.corpus, streaming.StreamedCorpus) else repeated(self.corpus)

    def damaged(self) -> int:
        return self.corpus.damaged

    def lossy(self) -> str | None:
        return self.corpus.lossy

    def batches(self, process_index: int, process_count: int) -> Iterator[dict[str, np.ndarray]]:
        where = process_index, process_count
        if isinstance(self.corpus, streaming.StreamedCorpus):
            return streaming.StreamBatches(self.config, self.corpus, *where, self.transform)
        return data.batches(self.config, self.corpus, *where, self.transform)

    def scored(self, split: str) -> data.Documents:
        """The documents that `evaluate` scores: about eval.tokens tokens (0: all) of the first eval.documents ones (0: all)."""
        settings = self.config.eval
        return sample(self.corpus.split(split)[: settings.documents or None], settings.tokens)

    def sizes(self) -> dict[str, dict[str, int | None]]:
        def measured(part: data.Documents) -> dict[str, int | None]:
            return {"documents": len(part), "tokens": int(part.lengths.sum())}

        if isinstance(self.corpus, streaming.StreamedCorpus):
            train = {"documents": None, "tokens": None, "files": self.corpus.files, "bytes": self.corpus.size}
            train["shuffled"] = streaming.BLOCK
        else:
            train = measured(self.corpus.train)
        scored = int(self.scored("validation").lengths.sum()) if self.validates else 0
        return {"validation": measured(self.corpus.validation) | {"scored": scored}, "train": train}

    def evaluate(
        self, model: nn.Module, variables: dict[str, Any], split: str = "validation", *, mesh: Mesh | None = None,
        between: Between = nothing,
    ) -> dict[str, Any]:  # fmt: skip
        """The objective's figures over one epoch of the documents. The corruption is the same in every evaluation."""
        config, documents = self.config, self.scored(split)
        found = data.rows(documents, config.train.length, config.data.seed, self.transform)
        loss = registry.load("train.objectives", config.train.objective).loss
        result = _held_out.score(loss, model, variables, found, config.eval.batch, config.train.form, mesh, between)
        return {"split": split, "documents": len(documents)} | result
