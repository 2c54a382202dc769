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
from jax.sharding import Mesh
from ml_collections import ConfigDict

import jaxseq
from jaxseq.blocks._block import Block
from jaxseq.errors import UserError
from jaxseq.models.lm import LM
from jaxseq.train.objectives import _recorded, distillation
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
    return _recorded.loss(NAME, _streams, _errors, model, variables, batch, rng, form=form, train=train)


def _errors(student: LM, teacher: LM, streams: list[jax.Array], taught: list[jax.Array], batch: dict) -> list[jax.Array]:
    return [_recorded.error(streams[k], taught[j]) for k, j in enumerate(pairs(student, teacher))]


def _streams(
    model: LM, variables: dict, batch: dict, rng: jax.Array, form: Any, train: bool
) -> tuple[jax.Array, Any, list[jax.Array]]:
    """(the input of the head [B, T, D], the sum of the sown losses, the stream after each block [B, T, D], zero at padding)."""
    x_BTD, extra, found = _recorded.recorded(model, variables, batch, rng, form, train, Block)
    return x_BTD, extra, [stream for (stream,) in found]


def pairs(student: LM, teacher: LM) -> list[int]:
    """For each block of the student, the number of the teacher's block of the nearest depth."""
    return _recorded.nearest(_recorded.depths(student), _recorded.depths(teacher))


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
