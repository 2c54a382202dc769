"""The objective's own figures over held-out rows: each row once, in batches of eval.batch."""

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseq.errors import UserError
from jaxseq.evaluation.bits_per_byte import Between, nothing

Row = dict[str, np.ndarray]


def score(
    loss: Callable, model: nn.Module, variables: dict, rows: Iterable[Row], batch: int, form: str, mesh: Mesh | None,
    between: Between = nothing,
) -> dict[str, Any]:  # fmt: skip
    """{"loss": …, and each of the objective's sums over its tokens, "tokens", "rows"}; deterministic.

    rows: each with its `weights`; the last batch is filled with rows of weight zero. between: called before each batch.
    """
    if batch < 1:
        raise UserError(f"eval.batch={batch} is not positive; set it to 1 or more")
    totals: dict[str, float] = {}
    count = 0
    rows = iter(rows)
    while group := list(itertools.islice(rows, batch)):
        between()
        count += len(group)
        empty = group[0] | {"weights": np.zeros_like(group[0]["weights"])}
        group += [empty] * (batch - len(group))
        arrays = {name: np.stack([row[name] for row in group]) for name in empty}
        found = jax.device_get(_sums(loss, model, form, mesh, variables, _place(arrays, mesh)))
        totals = {name: totals.get(name, 0.0) + float(value) for name, value in found.items()}
    tokens = totals.pop("tokens", 0.0)
    return {name: value / max(tokens, 1.0) for name, value in totals.items()} | {"tokens": tokens, "rows": count}


@functools.partial(jax.jit, static_argnames=("loss", "model", "form", "mesh"))
def _sums(loss, model, form: str, mesh: Mesh | None, variables, batch):
    total, sums, _ = loss(model, variables, batch, jax.random.key(0), form=form, train=False)
    return jax.tree.map(functools.partial(_whole, mesh), sums | {"loss": total})


def _whole(mesh: Mesh | None, value: jax.Array) -> jax.Array:
    """The value replicated on every device, so that every process can read it."""
    return value if mesh is None else jax.lax.with_sharding_constraint(value, NamedSharding(mesh, PartitionSpec()))


def _place(arrays: Row, mesh: Mesh | None) -> dict[str, Any]:
    if mesh is None:
        return arrays
    whole = PartitionSpec()
    size = mesh.shape["data"] * mesh.shape["fsdp"]
    split = {name: PartitionSpec(("data", "fsdp")) if len(array) % size == 0 else whole for name, array in arrays.items()}
    return {
        name: jax.make_array_from_callback(array.shape, NamedSharding(mesh, split[name]), array.__getitem__)
        for name, array in arrays.items()
    }
