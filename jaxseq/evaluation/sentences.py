"""Sentence embeddings (Reimers & Gurevych 2019, arXiv:1908.10084, §3)."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.data.tokenizers import Tokenizer
from jaxseq.errors import UserError
from jaxseq.models.encoder import Encoder


def embed(
    model: Encoder, params: Any, tokenizer: Tokenizer, sentences: Sequence[str], *, length: int | None = None, batch: int = 32
) -> np.ndarray:  # fmt: skip
    """[sentences, D] float32: the mean of the encoder's output over a sentence's tokens, scaled to length 1.

    The input is [begin] text [end], with the tokenizer's [CLS] and [SEP] (or its boundary if it has none), cut to `length`
    tokens (default: 256, or the number of positions of the model if that is smaller). The vector of a sentence does not depend
    on the other sentences, because padding is masked. The dot product of two vectors is their cosine similarity.

    model: an Encoder, from `from_pretrained` or from a run.
    """
    limit = model.capacity or math.inf
    length = min(256, limit) if length is None else length
    if not 3 <= length <= limit:
        raise UserError(f"length={length} is not between 3 and the model's {limit} positions; choose another")
    if isinstance(sentences, str):
        raise UserError("sentences must be a list of texts; put a single text in a list")
    begin, end = (tokenizer.find(*names) for names in (("[CLS]", "<s>"), ("[SEP]", "</s>")))
    begin, end = (tokenizer.boundary if found is None else found for found in (begin, end))
    rows = [np.concatenate([[begin], ids[: length - 2], [end]]) for ids in map(tokenizer.encode, sentences)]
    out = np.zeros((len(rows), model.width), np.float32)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(rows), batch):
        group = order[start : start + batch]
        out[group] = _mean(model, params, *_filled([rows[i] for i in group], batch, length))[: len(group)]
    return out


def _filled(rows: Sequence[np.ndarray], batch: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """tokens, pos [batch, T]. T is the longest row rounded up to a power of two, so that few programs are compiled."""
    longest = min(length, 1 << (max(map(len, rows)) - 1).bit_length())
    tokens, pos = np.zeros((batch, longest), np.int32), np.full((batch, longest), -1, np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], pos[i, : len(row)] = row, np.arange(len(row))
    return tokens, pos


@functools.partial(jax.jit, static_argnames="model")
def _mean(model, params, tokens_BT, pos_BT) -> jax.Array:
    hidden_BTD = model.apply({"params": params}, tokens_BT, pos_BT).hidden.astype(jnp.float32)  # zero at padding
    mean_BD = jnp.sum(hidden_BTD, axis=1) / jnp.maximum(jnp.sum(pos_BT >= 0, axis=1), 1)[:, None]
    return mean_BD / jnp.maximum(jnp.linalg.norm(mean_BD, axis=-1, keepdims=True), 1e-12)
