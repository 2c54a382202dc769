"""Each mixer of the student learns the outputs of the teacher's mixer at its place, from the teacher's inputs of that mixer.

With h_l the input of mixer l in the teacher, f_l the teacher's mixer and g_l the student's, the loss is the mean over the mixers
that differ of

    sum_t |g_l(h_l)_t - f_l(h_l)_t|^2 / sum_t |f_l(h_l)_t|^2

(attention transfer: Zhang et al. 2024, arXiv:2410.10254, §3.2; Bick et al. 2024, arXiv:2408.10189, §3.2). Departure from both: it
is relative to the size of the outputs, so that layers with small outputs count as much as others.

Teacher and student are language models with as many mixers, of equal width, in blocks of one kind. A mixer is matched if its name
in model.stack differs from the teacher's. The layers do not depend on each other: every mixer reads what the teacher computes.
All parameters but those of matched mixers have zero gradients; with train.weight_decay=0 they do not change.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

import jaxseq
from jaxseq.call import Call, Mixed
from jaxseq.errors import UserError
from jaxseq.layers import Mixer
from jaxseq.models import restack
from jaxseq.models.lm import LM
from jaxseq.ops import _time
from jaxseq.train.objectives import distillation, next_token
from jaxseq.train.objectives.distillation import Teacher, restored
from jaxseq.train.objectives.next_token import shapes, tokens

__all__ = ["Matched", "constants", "loss", "restored", "shapes", "task", "tokens"]


class Matched(Mixer):
    """The teacher's mixer; sows the two sums of the loss for the student's mixer on the same input."""

    teacher: Any = None  # Mixer
    student: Any = None  # Mixer

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        mixed = self.teacher(x_BTD, None, call)
        got_BTD, wanted_BTD = (
            y_BTD.astype(_time.accumulation_dtype(y_BTD)) for y_BTD in (self.student(x_BTD, None, call).y_BTD, mixed.y_BTD)
        )
        sums = [jnp.sum(jnp.square(got_BTD - wanted_BTD)), jnp.sum(jnp.square(wanted_BTD))]
        self.sow("intermediates", "matching", jnp.stack(sums))
        return mixed._replace(state=())


def loss(
    model: LM, variables: dict[str, Any], batch: dict[str, jax.Array], rng: jax.Array, *, form: Any, train: bool
) -> tuple[jax.Array, dict[str, jax.Array], dict]:
    """The loss above, times the tokens of the batch; the sums `tokens` and `matching`.

    variables: the student's, and `teacher`, a `Teacher`.
    """
    number = jnp.sum(batch["weights"])
    if (teacher := variables.get("teacher")) is None:
        return next_token.loss(model, variables, batch, rng, form=form, train=train)
    both, params = joined(model, variables["params"], teacher)
    _, changed = both.apply(
        {"params": params}, batch["tokens"], pos=batch["pos"], form=form, method="hidden", mutable=["intermediates"]
    )
    sums_N2 = jnp.concatenate([leaf.reshape(-1, 2) for leaf in jax.tree.leaves(changed["intermediates"])])
    error = jnp.mean(sums_N2[:, 0] / jnp.maximum(sums_N2[:, 1], jnp.finfo(sums_N2.dtype).tiny))
    return error * number, {"tokens": number, "matching": error * number}, {}


def joined(model: LM, params: Any, teacher: Teacher) -> tuple[LM, dict[str, Any]]:
    """The teacher in the student's segments, with a `Matched` for each mixer that differs; and its parameters."""
    arrays, sources, blocks = restack.restacked(teacher.params, teacher.model, model), restack.places(teacher.model), []
    for n, (repeats, block) in enumerate(zip(model.repeats, model.blocks, strict=True)):
        own, mixers = arrays[f"blocks_{n}"], []
        for mixer, place in zip(block.mixers, sources, strict=False):
            theirs = place.mixer.clone(name=mixer.name, parent=None)
            if theirs != mixer:
                pair = {"teacher": theirs.clone(name="teacher", parent=None), "student": mixer.clone(name="student", parent=None)}
                own[mixer.name] = {"teacher": own[mixer.name], "student": params[f"blocks_{n}"][mixer.name]}
                theirs = Matched(**pair, width=mixer.width, dtype=mixer.dtype, name=mixer.name, parent=None)
            mixers.append(theirs)
        blocks.append(block.clone(mixers=tuple(mixers), dropout=0.0, parent=None))
        sources = sources[repeats * len(block.mixers) :]
    return model.clone(blocks=tuple(blocks)), arrays


def constants(config: ConfigDict, mesh: Mesh) -> dict[str, Teacher]:
    """The teacher's shapes, see `distillation.constants`. Raises UserError also for models whose mixers cannot be matched."""
    found = distillation.constants(config, mesh)
    old, new = found["teacher"].model, cast(LM, jaxseq.build(config))
    restack.check(old, new)
    pairs = zip(restack.places(old), restack.places(new), strict=True)
    if all(a.mixer.clone(name="x", parent=None) == b.mixer.clone(name="x", parent=None) for a, b in pairs):
        raise UserError("train.objective=matching: all mixers are those of the teacher, so nothing is learnt; change model.stack")
    return found


class Matching(distillation.Distillation):
    """Evaluation is that of `next_token`, of the whole student."""


task = Matching
