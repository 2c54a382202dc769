"""More units of a kind: each is copied, and the weights that read it are divided among the copies (Net2WiderNet, Chen et al.
2015, arXiv:1511.05641, §2.2).

The fractions are random and sum to 1. With equal ones, the copies would have equal gradients and never differ. A norm over all
units does not change, because each unit has the same number of copies.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxseq import recipes, weights
from jaxseq.errors import UserError
from jaxseq.layers import Parameter

Counts = Callable[[str, str, int], int]  # (path, name of an axis, its size) -> consecutive elements that are copied together


def factor(argument: str, step: str) -> int:
    """The number of copies. Raises UserError unless it is an integer above 1."""
    if not argument.isdigit() or int(argument) < 2:
        raise UserError(f"{step}:{argument} needs an integer of at least 2; write it like {step}:2")
    return int(argument)


def expand(work: recipes.Candidate, fields: dict[str, Any], copies: int, key: jax.Array, counts: Counts) -> recipes.Candidate:
    """The model with `fields` in its config, and each axis that they make `copies` times as long filled with copies.

    An axis [P, count] of other meaning than [count] is copied along `count` only. Raises UserError if the fields change an axis
    by another factor.
    """
    larger = work.configured(fields)
    boxes, new = weights.leaves(larger.plain), {}
    if boxes.keys() != weights.leaves(work.plain).keys():
        raise UserError("this model would have other parameters with other sizes, so it cannot grow; choose another step")
    for path, array in weights.leaves(work.params).items():
        box = boxes[path]
        for axis, (old, size) in enumerate(zip(array.shape, box.value.shape, strict=True)):
            if size == copies * old:
                array = _copied(array, box, axis, copies, counts(path, box.names[axis], old), key)
            elif size != old:
                found = f"{path} would grow from {array.shape} to {box.value.shape}"
                raise UserError(f"{found}, not to {copies} times its size; choose another step")
        new[path] = array
    return larger.with_arrays(new)


def _copied(array: jax.Array, box: Parameter, axis: int, copies: int, count: int, key: jax.Array) -> jax.Array:
    shape = array.shape
    x = array.reshape(*shape[:axis], -1, 1, count, *shape[axis + 1 :])
    x = jnp.repeat(x, copies, axis=axis + 1)
    if axis - len(shape) in box.contracts:
        fractions = jax.random.uniform(jax.random.fold_in(key, count), (copies, count), array.dtype, 0.5, 1.5)
        fractions /= jnp.sum(fractions, axis=0)
        x *= fractions.reshape(copies, count, *[1] * (len(shape) - axis - 1))
    return x.reshape(*shape[:axis], -1, *shape[axis + 1 :])
