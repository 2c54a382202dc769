"""Distillation of mixer maps: in each layer, tokens are related to earlier ones as in the teacher.

With y_t the output of a mixer at token t, the map of the mixer is

    G_ts = y_t . y_s / sqrt(sum over u of (y_t . y_u)^2), for the tokens s, u <= t of the same document, else 0

and the loss of a batch per token is (1 - alpha) nats + alpha mean over the student's mixers of mean_t sum_s (G_ts - G'_ts)^2,
where G' is the teacher's, nats is that of `next_token` and alpha = train.distill_alpha. This is the similarity-preserving loss
(Tung & Mori 2019, arXiv:1907.09682, eq. 1 to 4) between tokens rather than between the examples of a batch, so it is causal
here. Like the value relation of MiniLM (arXiv:2002.10957, eq. 8) it compares models of any width and number of heads. As it is
made of a mixer's output, every mixer has one, with or without attention weights. The scale of the outputs does not matter.

Only mixers with a state are compared: the others do not relate tokens. A mixer of the student follows the teacher's mixer of the
nearest depth, the fraction of the network's mixers up to it. Teacher and student are language models of one vocabulary.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

import jaxseq
from jaxseq.errors import UserError
from jaxseq.layers import Mixer
from jaxseq.models.lm import LM
from jaxseq.ops import _time
from jaxseq.train.objectives import _recorded, distillation
from jaxseq.train.objectives.distillation import Teacher, restored
from jaxseq.train.objectives.next_token import shapes, tokens

__all__ = ["constants", "distance", "loss", "restored", "shapes", "task", "tokens"]

NAME = "mixer_maps"


def loss(
    model: LM, variables: dict[str, Any], batch: dict[str, jax.Array], rng: jax.Array, *, form: Any, train: bool
) -> tuple[jax.Array, dict[str, jax.Array], dict]:
    """Sum over tokens of the loss above; the sums of `next_token`, and `mixer_maps`, the mean distance times the tokens.

    variables: the student's, and `teacher`, a `Teacher`. Without one, or if its alpha is 0, this is `next_token.loss`.
    """
    return _recorded.loss(NAME, _outputs, _distances, model, variables, batch, rng, form=form, train=train)


def _distances(student: LM, teacher: LM, outputs: list[jax.Array], taught: list[jax.Array], batch: dict) -> list[jax.Array]:
    which = _recorded.nearest(*(_recorded.depths(each, relates) for each in (student, teacher)))
    return [distance(y_BTD, taught[j], batch["pos"]) for j, y_BTD in zip(which, outputs, strict=True)]


def relates(mixer: Mixer) -> bool:
    return mixer.init_state(1, 1) != ()


def distance(student_BTD: jax.Array, teacher_BTD: jax.Array, pos_BT: jax.Array) -> jax.Array:
    """The mean over tokens of sum_s (G_ts - G'_ts)^2. The widths may differ. pos_BT: see `jaxseq.ops`."""
    seen_BTS = _seen(pos_BT)
    difference_BTS = relation(student_BTD, seen_BTS) - relation(teacher_BTD, seen_BTS)
    return jnp.sum(jnp.square(difference_BTS)) / jnp.maximum(jnp.sum(_time.valid(pos_BT)), 1)


def _seen(pos_BT: jax.Array) -> jax.Array:
    """Whether token s is in the document of token t and not after it."""
    valid_BT = _time.valid(pos_BT)
    document_BT = jnp.cumsum(pos_BT == _time.START, axis=1)
    same_BTS = (document_BT[:, :, None] == document_BT[:, None]) & valid_BT[:, :, None] & valid_BT[:, None]
    return same_BTS & jnp.tri(pos_BT.shape[1], dtype=bool)


def relation(y_BTD: jax.Array, seen_BTS: jax.Array) -> jax.Array:
    """G. A token whose output is zero has a row of zeros."""
    acc = _time.accumulation_dtype(y_BTD)
    products_BTS = jnp.einsum("btd,bsd->bts", y_BTD, y_BTD, preferred_element_type=acc)
    products_BTS = jnp.where(seen_BTS, products_BTS, 0)
    size_BT1 = jnp.sum(jnp.square(products_BTS), axis=-1, keepdims=True)
    return products_BTS * jax.lax.rsqrt(jnp.where(size_BT1 > 0, size_BT1, 1))


def _outputs(
    model: LM, variables: dict, batch: dict, rng: jax.Array, form: Any, train: bool
) -> tuple[jax.Array, Any, list[jax.Array]]:
    """(the input of the head, the sum of the sown losses, the outputs of the mixers that relate tokens)."""
    x_BTD, extra, found = _recorded.recorded(model, variables, batch, rng, form, train, Mixer)
    blocks = [block for n, block in zip(model.repeats, model.blocks, strict=True) for _ in range(n)]
    pairs = [pair for block, own in zip(blocks, found, strict=True) for pair in zip(block.mixers, own, strict=True)]
    return x_BTD, extra, [y_BTD for mixer, y_BTD in pairs if relates(mixer)]


def constants(config: ConfigDict, mesh: Mesh) -> dict[str, Teacher]:
    """The teacher's shapes, see `distillation.constants`. Raises UserError also for a model without mixers that relate tokens."""
    found = distillation.constants(config, mesh)
    for model, field in ((cast(LM, jaxseq.build(config)), "model.stack"), (found["teacher"].model, "train.distill_teacher")):
        if not _recorded.depths(model, relates):
            raise UserError(f"{field} has no mixer that relates tokens, as train.objective={NAME} needs; choose another")
    return found


class MixerMaps(distillation.Distillation):
    """Evaluation is that of `next_token` and needs no teacher."""


task = MixerMaps
