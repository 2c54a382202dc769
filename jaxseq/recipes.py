"""Recipes: steps joined by "+" that change a trained model, such as "heads:0.25+int8".

Each step is a file of a folder (`compress` or `grow`), found by its name. Its argument is what follows the first colon.
"""

import dataclasses
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any, Self

import flax.linen as nn

import jaxseq
from jaxseq import registry, weights
from jaxseq.config import from_dict, to_dict
from jaxseq.errors import UserError
from jaxseq.train import structure


def steps(folder: str, recipe: str) -> list[tuple[ModuleType, str]]:
    """(module, argument) of each step. Raises UserError for an unknown one."""
    found = []
    for word in recipe.split("+"):
        name, _, argument = word.strip().partition(":")
        if name not in registry.names(folder):
            known = ", ".join(registry.names(folder))
            raise UserError(f"there is no step {word.strip()!r}; join steps by + and choose them from: {known}")
        found.append((registry.load(folder, name), argument))
    return found


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A model between two steps of a recipe."""

    config: Any
    params: Any  # with the types of config.model.weights
    say: Callable[[str], None]  # called with a line about the progress

    @functools.cached_property
    def model(self) -> nn.Module:
        return jaxseq.build(self.config)

    @functools.cached_property
    def plain(self) -> Any:
        """The boxes of the dense model's parameters."""
        return self.model.boxed()["params"]

    @functools.cached_property
    def boxes(self) -> Any:
        """The parameters' boxes, with the types of config.model.weights."""
        return structure.boxed(self.config, self.model)["params"]

    def configured(self, values: dict[str, Any]) -> Self:
        """With these fields of the config changed."""
        return dataclasses.replace(self, config=from_dict(to_dict(self.config), **values))

    def with_arrays(self, new: dict[str, Any]) -> Self:
        """With the parameters at these paths replaced."""
        return dataclasses.replace(self, params=weights.replaced(self.params, new, None))
