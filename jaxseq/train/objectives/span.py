"""Span corruption: predict the spans that were removed from a text (Raffel et al. 2020, arXiv:1910.10683, §3.1.4 and 3.3.4).

    Thank you for inviting me to your party last week .
    source  Thank you <X> me to your party <Y> week . <end>       targets  <X> for inviting <Y> last <end>

Of a row's n tokens, c = round(train.corruption n) are removed in round(c / train.mean_span) spans. The lengths of the spans and
of the gaps between them are uniform over all divisions. A row is treated as one text, even if it has several documents. Sentinels
<X>, <Y>, … are the tokenizer's <extra_id_0>, …, else SENTINELS ids after its last one, numbered from the end as in T5.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.errors import UserError
from jaxseq.evaluation.bits_per_byte import token_nats
from jaxseq.train.objectives import _task
from jaxseq.train.objectives.next_token import tokens

__all__ = ["SENTINELS", "SpanTask", "corrupt", "counts", "loss", "shapes", "task", "tokens"]

SENTINELS = 100


def loss(
    model: nn.Module, variables: dict[str, Any], batch: dict[str, jax.Array], rng: jax.Array, *, form: Any, train: bool
) -> tuple[jax.Array, dict[str, jax.Array], dict]:
    """Sum over the targets of their nats, and the sums `tokens`, `nats`, `accuracy`.

    batch: source, source_pos int32 [B, S]; tokens (the targets shifted right by one, after a start token), targets,
    pos int32 and weights float32 [B, T]. The model returns logits [B, T, V].
    """
    inputs = batch["source"], batch["tokens"], batch["source_pos"], batch["pos"]
    logits_BTV, extra, changed = _task.apply(model, variables, *inputs, rng=rng, train=train)
    nats_BT, _ = token_nats(logits_BTV, batch["targets"])
    right_BT = jnp.argmax(logits_BTV, axis=-1) == batch["targets"]
    weighted = functools.partial(_task.masked_sum, batch["weights"])
    count = jnp.sum(batch["weights"])
    sums = {"tokens": count, "nats": weighted(nats_BT), "accuracy": weighted(right_BT.astype(jnp.float32))}
    return sums["nats"] + extra * count, sums, changed


def counts(length: int, rate: float, mean_span: float) -> tuple[int, int]:
    """(removed tokens, spans) for a text of `length` >= 2 tokens: at least one each, and at least one token stays."""
    cut = min(max(round(length * rate), 1), length - 1)
    return cut, min(max(round(cut / mean_span), 1), cut, length - cut)


def _divided(total: int, parts: int, random: np.random.Generator) -> np.ndarray:
    """`parts` positive integers with sum `total`, uniform over all such."""
    ends = np.sort(random.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], ends, [total]]))


def corrupt(
    tokens_T: np.ndarray, rate: float, mean_span: float, sentinels: np.ndarray, end: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(source, targets) of different lengths, each followed by `end`. The text begins with tokens that stay."""
    cut, spans = counts(len(tokens_T), rate, mean_span)
    lengths = np.stack([_divided(len(tokens_T) - cut, spans, random), _divided(cut, spans, random)], axis=1).reshape(-1)
    parts = np.split(tokens_T, np.cumsum(lengths)[:-1])
    source, targets = [], []
    for i, (kept, removed) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
        source += [kept, sentinels[i : i + 1]]
        targets += [sentinels[i : i + 1], removed]
    return np.append(np.concatenate(source), end).astype(np.int32), np.append(np.concatenate(targets), end).astype(np.int32)


def sizes(config: ConfigDict) -> tuple[int, int]:
    """(source, targets): the lengths for a full row, which are the maximum."""
    length = config.train.length
    cut, spans = counts(length, config.train.corruption, config.train.mean_span)
    return length - cut + spans + 1, cut + spans + 1


def shapes(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    batch, (source, targets) = config.train.batch, sizes(config)
    arrays = dict.fromkeys(("source", "source_pos"), jax.ShapeDtypeStruct((batch, source), jnp.int32))
    arrays |= dict.fromkeys(("tokens", "targets", "pos"), jax.ShapeDtypeStruct((batch, targets), jnp.int32))
    return arrays | {"weights": jax.ShapeDtypeStruct((batch, targets), jnp.float32)}


def _filled(ids: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids, pos) of `length`."""
    free = length - len(ids)
    pos = np.pad(np.arange(len(ids), dtype=np.int32), (0, free), constant_values=-1)
    return np.pad(ids, (0, free)), pos


class SpanTask(_task.TextTask):
    def __init__(self, config):
        _task.check_model(config, "encoder_layers", "decoder_layers")
        _task.check_corruption(config)
        train = config.train
        if train.length < 2 or not train.mean_span >= 1:
            raise UserError(
                f"train.length={train.length} and train.mean_span={train.mean_span} leave no span to cut; set at least 2 and 1"
            )
        if (spans := counts(train.length, train.corruption, train.mean_span)[1]) > SENTINELS:
            raise UserError(
                f"{spans} spans a row, and there are {SENTINELS} sentinels; lower train.length or raise train.mean_span"
            )
        super().__init__(config, lambda tokenizer: SENTINELS if tokenizer.find("<extra_id_0>") is None else 0)
        find, last = self.tokenizer.find, self.tokenizer.vocab + SENTINELS - 1
        known = [find(f"<extra_id_{i}>") for i in range(SENTINELS)]
        ids = [last - i for i in range(SENTINELS)] if known[0] is None else [i for i in known if i is not None]
        self.sentinels = np.asarray(ids, np.int32)
        start = find("<pad>")  # T5's start token is its padding token
        self.start = self.tokenizer.boundary if start is None else start

    def transform(self, row: dict[str, np.ndarray], random: np.random.Generator) -> dict[str, np.ndarray]:
        """A row of one token, from which no span can be removed, has weight zero."""
        settings, end = self.config.train, self.tokenizer.boundary
        text = row["tokens"][row["pos"] >= 0]
        own = settings.corruption, settings.mean_span, self.sentinels, end, random
        source, targets = corrupt(text, *own) if len(text) >= 2 else (text, text[:0])
        source_length, target_length = sizes(self.config)
        source_S, source_pos_S = _filled(source, source_length)
        targets_T, pos_T = _filled(targets, target_length)
        tokens_T = np.concatenate([[self.start], targets_T[:-1]]).astype(np.int32)
        weights_T = (pos_T >= 0).astype(np.float32)
        return {
            "source": source_S, "source_pos": source_pos_S, "tokens": tokens_T, "targets": targets_T, "pos": pos_T,
            "weights": weights_T,
        }  # fmt: skip


task = SpanTask
