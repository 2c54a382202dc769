"""The argument and result of a recipe's steps, and helpers that they share."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxseq import recipes, weights
from jaxseq.compress._calibration import Calibration
from jaxseq.errors import UserError
from jaxseq.layers import Parameter
from jaxseq.weights import Sparse


class Kernel(NamedTuple):
    """An array that multiplies an activation: a parameter, or a field of a Weight."""

    path: str
    box: Parameter
    array: jax.Array

    @property
    def is_table(self) -> bool:
        """Whether it is an embedding or a head, whose rows belong to tokens."""
        return self.box.contracts == (-1,)

    @property
    def matrices(self) -> np.ndarray:
        """[N, inputs, outputs], N over layers and experts."""
        return np.asarray(weights.matrices(self.box, self.array))


@dataclasses.dataclass(frozen=True)
class Work(recipes.Candidate):
    """A model between two steps of a recipe, and what the steps need to judge its weights."""

    calibration: Calibration
    left: tuple[tuple[str, str], ...] = ()  # (path, why a step did not change it)

    def kernels(self) -> Iterator[Kernel]:
        """All arrays that a step may replace by a Weight."""
        arrays = weights.leaves(self.params)
        for path, box in weights.leaves(self.boxes).items():
            if box.contracts and np.issubdtype(box.value.dtype, np.floating):
                yield Kernel(path, box, arrays[path])

    def others(self) -> list[str]:
        """Paths of the matrices that no step changes: convolutions, decays and the like."""
        boxes = weights.leaves(self.plain)
        return [path for path, box in boxes.items() if not box.contracts and box.value.ndim - weights.leading(box) > 1]

    def typed(self, new: dict[str, tuple[str, Any]], left: dict[str, str]) -> "Work":
        """With parameters replaced. new: {path: (type with its argument, Weight)}. left: {path: why it was not replaced}."""
        if not new:
            reasons = "; ".join(sorted(set(left.values()))) or "it has no matrices"
            raise UserError(f"this step changes nothing of this model ({reasons}); leave it out of the recipe")
        rules: dict[str, list[str]] = {}
        for path, (kind, _) in new.items():
            rules.setdefault(kind, []).append(path)
        text = "; ".join(f"{kind} = {' '.join(paths)}" for kind, paths in rules.items())
        before = self.config.model.weights
        changed = {path: value for path, (_, value) in new.items()}
        return self.configured({"model.weights": f"{before}; {text}" if before else text}).replaced(changed, left)

    def replaced(self, new: dict[str, Any], left: dict[str, str]) -> "Work":
        return dataclasses.replace(self.with_arrays(new), left=self.left + tuple(left.items()))

    def is_sparse(self, kernel: Kernel) -> bool:
        """Whether a kernel is the field of a Sparse, with fixed zeros."""
        owner = kernel.path.rpartition("/")[0]
        nodes = jax.tree_util.tree_leaves_with_path(self.params, is_leaf=lambda node: isinstance(node, Sparse))
        return any(isinstance(node, Sparse) and weights.path_of(keys) == owner for keys, node in nodes)


def share(text: str, step: str) -> float:
    """The number in `text`, such as "0.5". Raises UserError unless it is between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise UserError(f"{step}:{text} needs a fraction between 0 and 1; write it like {step}:0.5")
    return value


def none(text: str, step: str) -> None:
    """Raises UserError if a step has an argument."""
    if text:
        raise UserError(f"{step} takes no argument; write {step}, not {step}:{text}")
