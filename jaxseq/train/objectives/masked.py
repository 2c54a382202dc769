"""Masked language modelling: predict hidden tokens from both sides (Devlin et al. 2019, arXiv:1810.04805, §3.1).

A share train.corruption (0.15) of a row's tokens is chosen, never document boundaries. Of these, 80 % become the mask, 10 % a
random token and 10 % stay unchanged. The choice is sampled again in each epoch, seeded by the row's number in the endless
sequence of rows.
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

__all__ = ["Masked", "corrupt", "loss", "shapes", "task", "tokens"]

MASKS = ("[MASK]", "<mask>")


def loss(
    model: nn.Module, variables: dict[str, Any], batch: dict[str, jax.Array], rng: jax.Array, *, form: Any, train: bool
) -> tuple[jax.Array, dict[str, jax.Array], dict]:
    """Sum over the chosen tokens of their nats, and the sums `tokens` (chosen ones), `nats`, `accuracy`.

    batch: tokens (some masked) and pos int32 [B, T]; at int32 [B, M], the positions of the chosen tokens; targets int32
    [B, M], the original tokens there; weights float32 [B, M], 0 for unused entries. The model, called with `at`, returns an
    object with `logits` [B, M, V] at these positions only.
    """
    inputs = dict(pos=batch["pos"], at=batch["at"])
    out, extra, changed = _task.apply(model, variables, batch["tokens"], rng=rng, train=train, **inputs)
    nats_BM, _ = token_nats(out.logits, batch["targets"])
    right_BM = jnp.argmax(out.logits, axis=-1) == batch["targets"]
    masked = functools.partial(_task.masked_sum, batch["weights"])
    chosen = jnp.sum(batch["weights"])
    sums = {"tokens": chosen, "nats": masked(nats_BM), "accuracy": masked(right_BM.astype(jnp.float32))}
    return sums["nats"] + extra * chosen, sums, changed


def places(config: ConfigDict) -> int:
    """M, the largest number of tokens that can be chosen in a row."""
    return max(1, round(config.train.corruption * config.train.length))


def shapes(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    batch, few = config.train.batch, (config.train.batch, places(config))
    arrays = dict.fromkeys(("tokens", "pos"), jax.ShapeDtypeStruct((batch, config.train.length), jnp.int32))
    arrays |= dict.fromkeys(("at", "targets"), jax.ShapeDtypeStruct(few, jnp.int32))
    return arrays | {"weights": jax.ShapeDtypeStruct(few, jnp.float32)}


def corrupt(
    tokens_T: np.ndarray, free_T: np.ndarray, rate: float, mask: int, vocab: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens with some masked, their positions in ascending order): round(rate * free tokens) of the free ones, at least one if
    there is any.

    vocab: random tokens are sampled from the ids below it.
    """
    free = np.flatnonzero(free_T)
    count = min(len(free), max(1, round(rate * len(free))))
    chosen = np.sort(random.choice(free, count, replace=False)) if count else free
    kind = random.random(count)
    other = random.integers(0, vocab, count)
    hidden = tokens_T.copy()
    hidden[chosen] = np.where(kind < 0.8, mask, np.where(kind < 0.9, other, tokens_T[chosen]))
    return hidden, chosen


class Masked(_task.TextTask):
    """The mask token is the tokenizer's, or else one id after its last."""

    def __init__(self, config):
        _task.check_model(config, "masked_head")
        _task.check_corruption(config)
        super().__init__(config, lambda tokenizer: int(tokenizer.find(*MASKS) is None))
        found = self.tokenizer.find(*MASKS)
        self.mask = self.tokenizer.vocab if found is None else found
        if self.mask >= (vocab := self.config.model.vocab):
            raise UserError(f"model.vocab={vocab} has no id for the mask, {self.mask}; name the tokenizer of these weights")

    def transform(self, row: dict[str, np.ndarray], random: np.random.Generator) -> dict[str, np.ndarray]:
        free_T = (row["pos"] >= 0) & ~np.isin(row["tokens"], (self.tokenizer.boundary, self.tokenizer.start))
        rate = self.config.train.corruption
        hidden_T, chosen = corrupt(row["tokens"], free_T, rate, self.mask, self.tokenizer.vocab, random)
        at_M = np.pad(chosen, (0, places(self.config) - len(chosen))).astype(np.int32)
        weights_M = (np.arange(len(at_M)) < len(chosen)).astype(np.float32)
        return {"tokens": hidden_T, "pos": row["pos"], "at": at_M, "targets": row["tokens"][at_M], "weights": weights_M}


task = Masked
