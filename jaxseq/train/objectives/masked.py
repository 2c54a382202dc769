"""Masked language modelling: guess the tokens that were hidden, from both sides (Devlin et al. 2019, arXiv:1810.04805, §3.1).

Of a row's tokens train.corruption (0.15) are chosen, document boundaries never; of these 80 % become the mask, 10 % a
random token and 10 % stay as they are. Each visit of a row draws anew, by its number in the endless sequence of rows.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.evaluation.bits_per_byte import token_nats
from jaxseq.train.objectives import _task
from jaxseq.train.objectives.next_token import shapes, tokens

__all__ = ["Masked", "corrupt", "loss", "shapes", "task", "tokens"]

MASKS = ("[MASK]", "<mask>")


def loss(model, variables, batch, rng, *, form, train) -> tuple[jax.Array, dict[str, jax.Array], dict]:
    """Sum over the chosen tokens of their nats, and the sums `tokens` (chosen ones), `nats`, `accuracy`.

    batch: tokens (some hidden), targets (the true ones), pos int32 [B, T], weights float32 [B, T], 1 where chosen. The
    model's output has `logits` [B, T, V].
    """
    out, extra, changed = _task.apply(model, variables, batch["tokens"], pos=batch["pos"], rng=rng, train=train)
    nats_BT, _ = token_nats(out.logits, batch["targets"])
    right_BT = jnp.argmax(out.logits, axis=-1) == batch["targets"]
    masked = functools.partial(_task.masked_sum, batch["weights"])
    chosen = jnp.sum(batch["weights"])
    sums = {"tokens": chosen, "nats": masked(nats_BT), "accuracy": masked(right_BT.astype(jnp.float32))}
    return sums["nats"] + extra * chosen, sums, changed


def corrupt(
    tokens_T: np.ndarray, free_T: np.ndarray, rate: float, mask: int, vocab: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens with some hidden, chosen [T] bool): round(rate * free tokens) of the free ones, at least one if there is any.

    vocab: random tokens are drawn from the ids below it.
    """
    free = np.flatnonzero(free_T)
    count = min(len(free), max(1, round(rate * len(free))))
    chosen = random.choice(free, count, replace=False) if count else free
    kind = random.random(count)
    other = random.integers(0, vocab, count)
    hidden = tokens_T.copy()
    hidden[chosen] = np.where(kind < 0.8, mask, np.where(kind < 0.9, other, tokens_T[chosen]))
    where = np.zeros(len(tokens_T), bool)
    where[chosen] = True
    return hidden, where


class Masked(_task.TextTask):
    """The mask is the tokenizer's own, else one id behind its last."""

    def __init__(self, config):
        _task.check_corruption(config)
        super().__init__(config, lambda tokenizer: int(tokenizer.find(*MASKS) is None))
        found = self.tokenizer.find(*MASKS)
        self.mask = self.tokenizer.vocab if found is None else found

    def transform(self, row, random):
        free_T = (row["pos"] >= 0) & (row["tokens"] != self.tokenizer.boundary)
        rate = self.config.train.corruption
        hidden_T, chosen_T = corrupt(row["tokens"], free_T, rate, self.mask, self.tokenizer.vocab, random)
        return {"tokens": hidden_T, "targets": row["tokens"], "pos": row["pos"], "weights": chosen_T.astype(np.float32)}


task = Masked
