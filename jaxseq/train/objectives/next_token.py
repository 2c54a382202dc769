"""Next-token prediction: cross entropy in nats under each row's token weights."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseq import evaluation, shards
from jaxseq.evaluation import bits_per_byte
from jaxseq.evaluation.bits_per_byte import Between, token_nats
from jaxseq.models.lm import LM
from jaxseq.train.objectives import _task

BLOCK = 1 << 25  # elements of the logits that a device holds at a time: 128 MiB in float32
DTYPES = {"tokens": jnp.int32, "targets": jnp.int32, "pos": jnp.int32, "weights": jnp.float32}


def loss(
    model: LM, variables: dict[str, Any], batch: dict[str, jax.Array], rng: jax.Array, *, form: Any, train: bool
) -> tuple[jax.Array, dict[str, jax.Array], dict]:
    """Sum over tokens of weight * nats, and the sums `tokens`, `nats`, `accuracy`, `log_z_squared`.

    batch: tokens, targets, pos int32 [B, T] and weights float32 [B, T]. What the model sows into 'losses' (already
    scaled means over tokens: router losses, logit penalties) is added, times the tokens of this batch.
    """
    x_BTD, extra, changed = hidden(model, variables, batch, rng, form=form, train=train)
    sums, penalty = blocked_sums(model, variables, x_BTD, batch["targets"], batch["weights"])
    return sums["nats"] + (extra + penalty) * sums["tokens"], sums, changed


def hidden(
    model: LM, variables: dict[str, Any], batch: dict[str, jax.Array], rng: jax.Array, *, form: Any, train: bool
) -> tuple[jax.Array, jax.Array, dict]:
    """(the input of the model's head [B, T, D], the sum of the sown losses, the changed collections)."""
    (x_BTD, _), extra, changed = _task.apply(
        model, variables, batch["tokens"], pos=batch["pos"], form=form, rng=rng, train=train, method="hidden"
    )
    return x_BTD, extra, changed


def logits(model: LM, variables: dict[str, Any], x_BTD: jax.Array) -> jax.Array:
    """The model's head: logits [B, T, V] from the first result of `hidden`."""
    return cast(jax.Array, model.apply(variables, x_BTD, method="logits"))  # apply returns Any


def blocked_sums(
    model: LM, variables: dict[str, Any], x_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """(sums over tokens, the mean penalty of the logits); see `in_blocks`."""

    def sums(inputs):
        x_BTD, targets_BT, weights_BT = inputs
        return scores(model, logits(model, variables, x_BTD), targets_BT, weights_BT)

    return in_blocks(sums, model.vocab, x_BTD, targets_BT, weights_BT)


def in_blocks(
    sums: Callable[[tuple[jax.Array, ...]], tuple[dict[str, jax.Array], jax.Array]], vocab: int, *arrays: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """`sums(arrays)`, (sums over tokens, the mean penalty of the logits), of arrays [B, T, …]. Logits with more than `BLOCK`
    elements on a device are never all in memory: they are computed in blocks of tokens, and again in the backward pass."""
    rows, time = arrays[0].shape[:2]
    block = _block(rows, time, vocab)
    if block == time:
        return sums(arrays)
    blocks = tuple(jnp.moveaxis(x.reshape(rows, -1, block, *x.shape[2:]), 1, 0) for x in arrays)
    parts, penalties = jax.lax.map(jax.checkpoint(sums, prevent_cse=False), blocks)
    return jax.tree.map(lambda part: jnp.sum(part, axis=0), parts), jnp.mean(penalties)


def _block(rows: int, time: int, vocab: int) -> int:
    """The largest divisor of T for which a block's logits have at most `BLOCK` elements on each device."""
    on_device = rows // shards.parts("batch", rows) * (vocab // shards.parts("vocab", vocab))
    return max(n for n in range(1, time + 1) if time % n == 0 and (n == 1 or n * on_device <= BLOCK))


def scores(
    model: LM, logits_BTV: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """(the sums of `loss`, the mean penalty of the logits)."""
    nats_BT, log_z_BT = token_nats(logits_BTV, targets_BT)
    right_BT = jnp.argmax(logits_BTV, axis=-1) == targets_BT
    masked = functools.partial(_task.masked_sum, weights_BT)
    sums = {
        "tokens": jnp.sum(weights_BT),
        "nats": masked(nats_BT),
        "accuracy": masked(right_BT.astype(jnp.float32)),
        "log_z_squared": masked(log_z_BT**2),
    }
    return sums, model.penalty(logits_BTV) if model.logit_penalty else jnp.zeros((), jnp.float32)


def shapes(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    shape = (config.train.batch, config.train.length)
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, dtype in DTYPES.items()}


def tokens(config: ConfigDict) -> int:
    return config.train.batch * config.train.length


class NextToken(_task.TextTask):
    figures = ("bits_per_byte", "perplexity", "nats_per_token")

    def __init__(self, config):
        _task.check_model(config, "stack")  # a causal language model
        super().__init__(config)

    @property
    def bytes_per_token(self) -> float | None:
        return _task.bytes_per_token(self.corpus)

    def check(self, model: LM) -> None:
        super().check(model)
        known = model.capacity is not None and self.validates  # else nothing has to be read for it
        bits_per_byte.check(model, self.config, int(self.scored("validation").lengths.max()) if known else 0)

    def evaluate(
        self, model: LM, variables: dict[str, Any], split: str = "validation", *, mesh: Mesh | None = None,
        between: Between = _task.nothing,
    ) -> dict[str, Any]:  # fmt: skip
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
