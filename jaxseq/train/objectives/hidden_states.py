"""Distillation of hidden states: the student's residual stream after each block follows the teacher's.

With x_k the student's stream after its block k and z_k the teacher's at the same depth, the loss of a batch per token is

    (1 - alpha) nats + alpha mean_k (sum_t |x_kt - z_kt|^2 / sum_t |z_kt|^2)

where nats is that of `next_token` and alpha = train.distill_alpha (Jiao et al. 2019, arXiv:1909.10351, eq. 8; Bick et al. 2024,
arXiv:2408.10189, §3.2). Departures: the error is relative to the size of the stream, which grows with depth, and there is no
linear map between the two, so their widths must be equal. The depth of a block is the fraction of the network's mixers up to its
end; a block of the student is compared with the teacher's block of the nearest depth.

Teacher and student are language models of one width and vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

import jaxseq
from jaxseq.blocks._block import Block
from jaxseq.errors import UserError
from jaxseq.models.lm import LM
from jaxseq.ops import _time
from jaxseq.train.objectives import distillation, next_token
from jaxseq.train.objectives.distillation import Teacher, restored
from jaxseq.train.objectives.next_token import shapes, tokens

__all__ = ["constants", "loss", "restored", "shapes", "task", "tokens"]

NAME = "hidden_states"


def loss(
    model: LM, variables: dict[str, Any], batch: dict[str, jax.Array], rng: jax.Array, *, form: Any, train: bool
) -> tuple[jax.Array, dict[str, jax.Array], dict]:
    """Sum over tokens of the loss above; the sums of `next_token`, and `hidden_states`, the mean error times the tokens.

    variables: the student's, and `teacher`, a `Teacher`. Without one, or if its alpha is 0, this is `next_token.loss`.
    """
    own, teacher = distillation.parted(variables)
    if teacher is None:
        return next_token.loss(model, own, batch, rng, form=form, train=train)
    x_BTD, extra, streams = _streams(model, own, batch, rng, form, train)
    _, _, taught = _streams(teacher.model, {"params": teacher.params}, batch, rng, form, False)
    error = jnp.mean(jnp.stack([_error(streams[k], taught[j]) for k, j in enumerate(pairs(model, teacher.model))]))
    sums, penalty = next_token.blocked_sums(model, own, x_BTD, batch["targets"], batch["weights"])
    sums |= {NAME: error * sums["tokens"]}
    learnt = (1 - teacher.alpha) * sums["nats"] + teacher.alpha * sums[NAME]
    return learnt + (extra + penalty) * sums["tokens"], sums, {}


def _error(x_BTD: jax.Array, wanted_BTD: jax.Array) -> jax.Array:
    x_BTD, wanted_BTD = (x.astype(_time.accumulation_dtype(x)) for x in (x_BTD, wanted_BTD))
    size = jnp.sum(jnp.square(wanted_BTD))
    return jnp.sum(jnp.square(x_BTD - wanted_BTD)) / jnp.maximum(size, jnp.finfo(size.dtype).tiny)


def _streams(model: LM, variables: dict, batch: dict, rng: jax.Array, form: Any, train: bool) -> tuple[jax.Array, Any, list]:
    """(the input of the head [B, T, D], the sum of the sown losses, the stream after each block [B, T, D], zero at padding)."""

    def record(call_next, args, kwargs, context):
        result = call_next(*args, **kwargs)
        if isinstance(context.module, Block) and context.method_name == "__call__":
            x_BTD, _, call = result[0], *args[1:]
            context.module.sow("intermediates", NAME, _time.select(_time.valid(call.pos_BT), x_BTD))
        return result

    with nn.intercept_methods(record):
        (x_BTD, _), sown = model.apply(
            variables, batch["tokens"], pos=batch["pos"], form=form, train=train, rngs={"dropout": rng}, method="hidden",
            mutable=["losses", "intermediates"],
        )  # fmt: skip
    extra = sum((jnp.sum(leaf) for leaf in jax.tree.leaves(sown.get("losses", {}))), start=jnp.zeros((), jnp.float32))
    streams = []
    for n, repeats in enumerate(model.repeats):
        (x_LBTD,) = jax.tree.leaves(sown["intermediates"][f"blocks_{n}"])
        streams += list(x_LBTD.reshape(repeats, *x_BTD.shape))
    return x_BTD, extra, streams


def pairs(student: LM, teacher: LM) -> list[int]:
    """For each block of the student, the number of the teacher's block of the nearest depth."""

    def depths(model: LM) -> np.ndarray:
        sizes = [len(block.mixers) for n, block in zip(model.repeats, model.blocks, strict=True) for _ in range(n)]
        return np.cumsum(sizes) / sum(sizes)

    theirs = depths(teacher)
    return [int(np.argmin(np.abs(theirs - depth))) for depth in depths(student)]


def constants(config: ConfigDict, mesh: Mesh) -> dict[str, Teacher]:
    """The teacher's shapes, see `distillation.constants`. Raises UserError also for a teacher of another width."""
    found = distillation.constants(config, mesh)
    old, new = found["teacher"].model.width, jaxseq.build(config).width
    if old != new:
        raise UserError(f"model.width={new} is not the teacher's {old}, so hidden states cannot be compared; make it {old}")
    return found


class HiddenStates(distillation.Distillation):
    """Evaluation is that of `next_token` and needs no teacher."""


task = HiddenStates
