"""Next-token prediction: cross entropy in nats under each row's token weights."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxseq import evaluation
from jaxseq.evaluation import bits_per_byte
from jaxseq.evaluation.bits_per_byte import token_nats
from jaxseq.train.objectives import _task

DTYPES = {"tokens": jnp.int32, "targets": jnp.int32, "pos": jnp.int32, "weights": jnp.float32}


def loss(model, variables, batch, rng, *, form, train) -> tuple[jax.Array, dict[str, jax.Array], dict]:
    """Sum over tokens of weight * nats, and the sums `tokens`, `nats`, `accuracy`, `log_z_squared`.

    batch: tokens, targets, pos int32 [B, T] and weights float32 [B, T]. What the model sows into 'losses' (already
    scaled means over tokens: router losses, logit penalties) is added, times the tokens of this batch.
    """
    (logits_BTV, _), extra, changed = _task.apply(
        model, variables, batch["tokens"], pos=batch["pos"], form=form, rng=rng, train=train
    )
    weights_BT = batch["weights"]
    nats_BT, log_z_BT = token_nats(logits_BTV, batch["targets"])
    right_BT = jnp.argmax(logits_BTV, axis=-1) == batch["targets"]
    masked = functools.partial(_task.masked_sum, weights_BT)
    tokens = jnp.sum(weights_BT)
    sums = {
        "tokens": tokens,
        "nats": masked(nats_BT),
        "accuracy": masked(right_BT.astype(jnp.float32)),
        "log_z_squared": masked(log_z_BT**2),
    }
    return sums["nats"] + extra * tokens, sums, changed


def shapes(config) -> dict[str, jax.ShapeDtypeStruct]:
    shape = (config.train.batch, config.train.length)
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, dtype in DTYPES.items()}


def tokens(config) -> int:
    return config.train.batch * config.train.length


class NextToken(_task.TextTask):
    figures = ("bits_per_byte", "perplexity", "nats_per_token")

    def __init__(self, config):
        _task.check_model(config, "stack")  # a causal language model
        super().__init__(config)

    @property
    def bytes_per_token(self) -> float | None:
        return _task.bytes_per_token(self.corpus)

    def check(self, model):
        super().check(model)
        known = model.capacity is not None and self.validates  # else nothing has to be read for it
        bits_per_byte.check(model, self.config, int(self.scored("validation").lengths.max()) if known else 0)

    def evaluate(self, model, variables, split="validation", *, mesh=None, between=_task.nothing) -> dict[str, Any]:
        corpus = self.corpus._replace(**{split: self.scored(split)})
        result = evaluation.evaluate(model, variables["params"], self.config, corpus, split, mesh=mesh, between=between)
        return result | ({"lossy": corpus.lossy} if corpus.lossy else {})

    def describe(self, result: dict[str, Any]) -> str:
        lossy = f"; * too low: the tokenizer is lossy, {result['lossy']}" if result.get("lossy") else ""
        return (
            f"{result['bits_per_byte']:.4f}{'*' if lossy else ''} bits/byte, perplexity {result['perplexity']:.3f} a token, over "
            f"{len(result['documents'])} documents, {result['bytes']:,} bytes{lossy}"
        )


task = NextToken
