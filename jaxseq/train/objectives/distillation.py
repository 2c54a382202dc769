"""Distillation: the student learns from a text and from a teacher's distribution of every next token (Hinton et al. 2015,
arXiv:1503.02531, §2).

With p = softmax(teacher's logits / tau) and q = softmax(student's logits / tau), tau = train.distill_temperature, the loss of a
token is

    (1 - alpha) nats + alpha tau^2 KL

where nats is that of `next_token` (without temperature), alpha = train.distill_alpha, and KL is sum_v p log(p / q) (forward) or
sum_v q log(q / p) (reverse: Gu et al. 2023, arXiv:2306.08543, eq. 1, here for each token of the given text rather than for text
that the student samples). tau^2 keeps the size of the gradient independent of tau. train.distill_top_k = k replaces p by its k
largest probabilities, renormalised; q stays a distribution over all tokens.

With train.distill_cache the teacher's largest logits are read from disk (see `_cached`), with the loss of train.distill_top_k.
Else the teacher is any language model of jaxseq with the same vocabulary. Its parameters are sharded as those of a trained
model; no step changes them, and they are in no checkpoint of the student.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

import jaxseq
from jaxseq.errors import UserError
from jaxseq.models.lm import LM
from jaxseq.train import checkpoints, structure, workdirs
from jaxseq.train.objectives import _cached, _task, next_token
from jaxseq.train.objectives.next_token import tokens
from jaxseq.train.step import abstract_params
from jaxseq.train.weights import restore_variables

__all__ = ["Teacher", "constants", "divergence", "loss", "parted", "restored", "shapes", "task", "tokens"]

KINDS = ("forward", "reverse")


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["model", "alpha", "temperature", "kind", "top_k"]
)
@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained model and what is learnt from it; a pytree of its parameters."""

    params: Any
    model: Any  # LM; None if its logits are in the batch, see `_cached`
    alpha: float
    temperature: float
    kind: str
    top_k: int


def loss(
    model: LM, variables: dict[str, Any], batch: dict[str, jax.Array], rng: jax.Array, *, form: Any, train: bool
) -> tuple[jax.Array, dict[str, jax.Array], dict]:
    """Sum over tokens of weight * loss as above; the sums of `next_token`, and `distillation`, the sum of weight * KL.

    variables: the student's, and `teacher`, a `Teacher`. Without one, or if its alpha is 0, this is `next_token.loss`.
    """
    own, teacher = parted(variables)
    if teacher is None:
        return next_token.loss(model, own, batch, rng, form=form, train=train)
    theirs = {"params": teacher.params}
    x_BTD, extra, changed = next_token.hidden(model, own, batch, rng, form=form, train=train)
    if teacher.model is None:
        taught = tuple(batch[name] for name in _cached.ARRAYS)
    else:
        taught = next_token.hidden(teacher.model, theirs, batch, rng, form=form, train=False)[:1]

    def sums_of(inputs):
        x_BTD, targets_BT, weights_BT, *taught = inputs
        logits_BTV = next_token.logits(model, own, x_BTD)
        if teacher.model is None:
            ids_BTK, largest_BTK = taught
            kl_BT = divergence_of_largest(ids_BTK, largest_BTK, logits_BTV, teacher.temperature)
        else:
            taught_BTV = next_token.logits(teacher.model, theirs, *taught)
            kl_BT = divergence(taught_BTV, logits_BTV, teacher.temperature, teacher.kind, teacher.top_k)
        sums, penalty = next_token.scores(model, logits_BTV, targets_BT, weights_BT)
        return sums | {"distillation": _task.masked_sum(weights_BT, kl_BT)}, penalty

    sums, penalty = next_token.in_blocks(sums_of, model.vocab, x_BTD, batch["targets"], batch["weights"], *taught)
    learnt = (1 - teacher.alpha) * sums["nats"] + teacher.alpha * teacher.temperature**2 * sums["distillation"]
    return learnt + (extra + penalty) * sums["tokens"], sums, changed


def parted(variables: dict[str, Any]) -> tuple[dict[str, Any], Teacher | None]:
    """(the student's variables, the teacher; None if there is none or its alpha is 0)."""
    own = {name: value for name, value in variables.items() if name != "teacher"}
    teacher = variables.get("teacher")
    return own, teacher if teacher is not None and teacher.alpha else None


def divergence(
    teacher_BTV: jax.Array, student_BTV: jax.Array, temperature: float = 1.0, kind: str = "forward", top_k: int = 0
) -> jax.Array:
    """KL divergence between the distributions of two arrays of logits, in nats: [B, T] float32 or wider.

    kind: "forward", teacher from student, or "reverse". top_k: the teacher's distribution is that of its top_k largest logits;
    0 for all. With top_k only the forward divergence is finite.
    """
    if top_k:
        p_BTK, ids_BTK = jax.lax.top_k(teacher_BTV, top_k)
        return divergence_of_largest(ids_BTK, p_BTK, student_BTV, temperature)
    p_BTV, q_BTV = (jax.nn.log_softmax(_wide(x_BTV) / temperature) for x_BTV in (teacher_BTV, student_BTV))
    if kind == "reverse":
        p_BTV, q_BTV = q_BTV, p_BTV
    return jnp.sum(jnp.exp(p_BTV) * (p_BTV - q_BTV), axis=-1)


def divergence_of_largest(
    ids_BTK: jax.Array, teacher_BTK: jax.Array, student_BTV: jax.Array, temperature: float = 1.0
) -> jax.Array:
    """The forward `divergence` for the teacher's logits of some ids."""
    p_BTK = jax.nn.log_softmax(_wide(teacher_BTK) / temperature)
    q_BTK = jnp.take_along_axis(jax.nn.log_softmax(_wide(student_BTV) / temperature), ids_BTK, axis=-1)
    return jnp.sum(jnp.exp(p_BTK) * (p_BTK - q_BTK), axis=-1)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def shapes(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """The batch of `next_token`, and with train.distill_cache the teacher's logits [B, T, K]."""
    found, train = next_token.shapes(config), config.train
    if not train.distill_cache:
        return found
    top_k = train.distill_top_k or _cached.read_header(train.distill_cache).top_k
    return found | {
        name: jax.ShapeDtypeStruct((train.batch, train.length, top_k), dtype) for name, dtype in _cached.ARRAYS.items()
    }


def constants(config: ConfigDict, mesh: Mesh) -> dict[str, Teacher]:
    """The teacher's shapes, with shardings; none for a cache. Raises UserError if there is no teacher, or none that fits."""
    train = config.train
    learnt = train.distill_alpha, train.distill_temperature, train.distill_kind, train.distill_top_k
    if train.distill_cache:
        if train.objective != "distillation":
            raise UserError(f"train.objective={train.objective} needs the teacher itself; leave train.distill_cache out")
        _cached.check(config, _cached.read_header(train.distill_cache))
        return {"teacher": Teacher({}, None, *learnt)}
    taught = _config_of_teacher(config)
    model = cast(LM, jaxseq.build(taught))  # others were refused
    model.check_length(train.length)
    if train.distill_top_k > model.vocab:
        raise UserError(f"train.distill_top_k={train.distill_top_k} is larger than the vocabulary, {model.vocab}; lower it")
    return {"teacher": Teacher(abstract_params(structure.boxed(taught, model), mesh)["params"], model, *learnt)}


def restored(config: ConfigDict, constants: dict[str, Teacher]) -> dict[str, Teacher]:
    """`constants` with the weights of the teacher's newest intact checkpoint."""
    teacher = constants["teacher"]
    if teacher.model is None:
        return constants
    found = restore_variables(config.train.distill_teacher, {"params": teacher.params})
    return {"teacher": dataclasses.replace(teacher, params=found["params"])}


def _config_of_teacher(config):
    """The teacher's config. Raises UserError if there is no teacher, or if it has another vocabulary than `config`."""
    if not (source := config.train.distill_teacher):
        raise UserError(f"train.objective={config.train.objective} needs a teacher; give its workdir as train.distill_teacher")
    if (found := workdirs.saved_config(source)) is None:
        raise UserError(f"train.distill_teacher={source} is not the workdir of a run; give the path where the teacher is now")
    checkpoints.saved(source)
    if "stack" not in found.model:
        raise UserError(f"train.distill_teacher={source} is not a language model (model.kind={found.model.kind}); choose another")
    if config.model.vocab not in (None, found.model.vocab):
        raise UserError(
            f"model.vocab={config.model.vocab} is not the teacher's {found.model.vocab} ({source}): their distributions cannot "
            "be compared; leave model.vocab empty"
        )
    return found


class Distillation(next_token.NextToken):
    """An empty model.vocab becomes the teacher's. Evaluation is that of `next_token` and needs no teacher."""

    def __init__(self, config):
        train, config = config.train, config.copy_and_resolve_references()
        if train.distill_kind not in KINDS:
            raise UserError(f"there is no train.distill_kind={train.distill_kind!r}; choose one of: {', '.join(KINDS)}")
        if (train.distill_top_k or train.distill_cache) and train.distill_kind != "forward":
            field = "distill_top_k" if train.distill_top_k else "distill_cache"
            raise UserError(f"train.{field} is for train.distill_kind=forward; the reverse divergence would be infinite")
        if config.model.get("vocab", 0) is None:
            cache = train.distill_cache
            config.model.vocab = _cached.read_header(cache).vocab if cache else _config_of_teacher(config).model.vocab
        super().__init__(config)

    def batches(self, process_index: int, process_count: int) -> Iterator[dict[str, np.ndarray]]:
        found = super().batches(process_index, process_count)
        cached = self.config.train.distill_cache
        return _cached.TaughtBatches(found, self.config, process_index, process_count) if cached else found


task = Distillation
