"""Statistics of the activations on a run's training data."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import jaxseq
from jaxseq import registry, weights
from jaxseq.errors import UserError


class Calibration:
    """The first rows of the training data of a task, about `tokens` tokens."""

    def __init__(self, task: Any, tokens: int, say: Callable[[str], None]):
        self.task, self.tokens, self.say = task, tokens, say

    @functools.cached_property
    def rows(self) -> list[dict[str, np.ndarray]]:
        """Batches of the training data. Raises UserError if there are fewer than `tokens` tokens."""
        train = self.task.config.train
        found = self.task.sizes()["train"]["tokens"]
        if found is not None and found < self.tokens:
            few = f"the training data have {found:,} tokens, too few to calibrate on {self.tokens:,}"
            raise UserError(f"{few}; give more, or lower --tokens")
        batches, count = self.task.batches(0, 1), -(-self.tokens // (train.batch * train.length))
        return [next(batches) for _ in range(count)]

    def grams(self, config: Any, params: Any) -> dict[str, np.ndarray]:
        """{path of a kernel in the dense model: sum over all tokens of x x^T, [N, I, I] for its inputs x}, N over layers."""
        model = jaxseq.build(config)
        if "tokens" not in self.rows[0] or config.model.kind != "lm":
            raise UserError(f"this step needs the activations of a causal language model, not of a {config.model.kind}")
        self.say(f"calibrating on {len(self.rows) * self.rows[0]['tokens'].size:,} tokens of the training data")

        @jax.jit
        def add(before, params, tokens_BT, pos_BT):
            more = {"form": config.train.form, "method": "hidden", "mutable": ["calibration"]}
            _, found = model.apply({"params": params}, tokens_BT, pos=pos_BT, **more)
            return found["calibration"] if before is None else jax.tree.map(jnp.add, before, found["calibration"])

        total = None
        for batch in self.rows:
            total = add(total, params, batch["tokens"], batch["pos"])
        grams = {path.removesuffix("gram") + "kernel": np.asarray(x, np.float64) for path, x in weights.leaves(total).items()}
        for n, distinct in enumerate(model.distinct or ()):
            if distinct < model.repeats[n]:  # over all applications of the same weights
                grams |= {path: gram.sum(axis=1) for path, gram in grams.items() if path.startswith(f"blocks_{n}/")}
        return {path: gram.reshape(-1, *gram.shape[-2:]) for path, gram in grams.items()}

    def loss(self, model: Any, params: Any) -> float:
        """Nats per token over these rows."""
        total, count = 0.0, 0.0
        for batch in self.rows:
            sums = _loss(model, self.task.config.train.objective, params, batch)
            total, count = total + float(sums["nats"]), count + float(sums["tokens"])
        return total / count


def observed(model: nn.Module) -> set[str]:
    """Paths of the kernels of linear maps: those whose inputs `Calibration.grams` can observe in models of its kind."""
    shapes = nn.meta.unbox(model.boxed())
    apply = lambda variables: model.apply(variables, *model.example(), mutable=["calibration"])[1]  # noqa: E731
    found = jax.eval_shape(apply, shapes).get("calibration", {})
    return {f"{path.removesuffix('gram')}kernel" for path in weights.leaves(found)}


@functools.partial(jax.jit, static_argnames=("model", "objective"))
def _loss(model: Any, objective: str, params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    loss = registry.load("train.objectives", objective).loss
    return loss(model, {"params": params}, batch, jax.random.key(0), form="chunkwise", train=False)[1]
