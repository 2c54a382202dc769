"""What modules inside a language model return, for objectives that compare it with a teacher's."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxseq.models.lm import LM
from jaxseq.ops import _time
from jaxseq.train.objectives import distillation, next_token

NAME = "recorded"


def loss(
    name: str, values: Callable, differences: Callable, model: LM, variables: dict[str, Any], batch: dict[str, jax.Array],
    rng: jax.Array, *, form: Any, train: bool,
) -> tuple[jax.Array, dict[str, jax.Array], dict]:  # fmt: skip
    """Sum over tokens of (1 - alpha) nats + alpha d; the sums of `next_token`, and `name`, d times the tokens.

    d is the mean of differences(student, teacher, values of the student, values of the teacher, batch). values(model, variables,
    batch, rng, form, train) -> (the input of the head, the sum of the sown losses, values). variables: the student's, and
    `teacher`, a `Teacher`. Without one, or if its alpha is 0, this is `next_token.loss`.
    """
    own, teacher = distillation.parted(variables)
    if teacher is None:
        return next_token.loss(model, own, batch, rng, form=form, train=train)
    x_BTD, extra, ours = values(model, own, batch, rng, form, train)
    _, _, theirs = values(teacher.model, {"params": teacher.params}, batch, rng, form, False)
    mean = jnp.mean(jnp.stack(differences(model, teacher.model, ours, theirs, batch)))
    sums, penalty = next_token.blocked_sums(model, own, x_BTD, batch["targets"], batch["weights"])
    sums |= {name: mean * sums["tokens"]}
    learnt = (1 - teacher.alpha) * sums["nats"] + teacher.alpha * sums[name]
    return learnt + (extra + penalty) * sums["tokens"], sums, {}


def recorded(
    model: LM, variables: dict, batch: dict, rng: jax.Array, form: Any, train: bool, kind: type,
) -> tuple[jax.Array, Any, list[list[jax.Array]]]:  # fmt: skip
    """(the input of the head [B, T, D], the sum of the sown losses, the first results [B, T, D] of the modules of class `kind` in
    each block, zero at padding)."""

    def record(call_next, args, kwargs, context):
        result = call_next(*args, **kwargs)
        if isinstance(context.module, kind) and context.method_name == "__call__":
            x_BTD, _, call = result[0], *args[1:]
            context.module.sow("intermediates", NAME, _time.select(_time.valid(call.pos_BT), x_BTD))
        return result

    with nn.intercept_methods(record):
        (x_BTD, _), sown = model.apply(
            variables, batch["tokens"], pos=batch["pos"], form=form, train=train, rngs={"dropout": rng}, method="hidden",
            mutable=["losses", "intermediates"],
        )  # fmt: skip
    extra = sum((jnp.sum(leaf) for leaf in jax.tree.leaves(sown.get("losses", {}))), start=jnp.zeros((), jnp.float32))
    found = []
    for n, (repeats, block) in enumerate(zip(model.repeats, model.blocks, strict=True)):
        own = sown["intermediates"][f"blocks_{n}"]
        names = [[]] if NAME in own else [[mixer.name] for mixer in block.mixers if NAME in own.get(mixer.name, {})]
        arrays = [_at(own, [*path, NAME])[0].reshape(repeats, *x_BTD.shape) for path in names]
        found += [[x_LBTD[i] for x_LBTD in arrays] for i in range(repeats)]
    return x_BTD, extra, found


def _at(tree: Any, path: Sequence[str]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def nearest(student: Sequence[float], teacher: Sequence[float]) -> list[int]:
    """For each depth of the student, the number of the teacher's nearest one."""
    theirs = np.asarray(teacher)
    return [int(np.argmin(np.abs(theirs - depth))) for depth in student]


def error(x_BTD: jax.Array, wanted_BTD: jax.Array) -> jax.Array:
    """sum |x - wanted|^2 / sum |wanted|^2, in the accumulation dtype."""
    x_BTD, wanted_BTD = (x.astype(_time.accumulation_dtype(x)) for x in (x_BTD, wanted_BTD))
    size = jnp.sum(jnp.square(wanted_BTD))
    return jnp.sum(jnp.square(x_BTD - wanted_BTD)) / jnp.maximum(size, jnp.finfo(size.dtype).tiny)


def depths(model: LM, counted: Callable[[Any], bool] | None = None) -> list[float]:
    """The fraction of the network's mixers up to the end of each block; with `counted`, up to each mixer that it accepts."""
    blocks = [block for n, block in zip(model.repeats, model.blocks, strict=True) for _ in range(n)]
    total, seen, found = sum(len(block.mixers) for block in blocks), 0, []
    for block in blocks:
        for mixer in block.mixers:
            seen += 1
            if counted is not None and counted(mixer):
                found.append(seen / total)
        if counted is None:
            found.append(seen / total)
    return found
