"""The tensors of a checkpoint as a lazy mapping {name: array}, with `shape(name)` and `dtype(name)`, which read no numbers."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


class Tensors(Mapping):
    """{name: array}. A subclass has `parts`, {name: location of the tensor}, and `shape`, `dtype` and `__getitem__`."""

    def __init__(self, parts: Mapping[str, Any]):
        self.parts = dict(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def __contains__(self, name: object) -> bool:
        return name in self.parts  # Mapping's implementation would read the tensor

    def shape(self, name: str) -> tuple[int, ...]:
        return np.shape(self[name])

    def dtype(self, name: str) -> str:
        """numpy's name of the dtype, or the file's name if numpy has none."""
        return np.asarray(self[name]).dtype.name

    def __getitem__(self, name: str) -> np.ndarray:
        return self.parts[name]


def plain(tensors: Mapping[str, Any]) -> Tensors:
    """Arrays in memory, with the interface of Tensors."""
    return tensors if isinstance(tensors, Tensors) else Tensors(tensors)


class Renamed(Tensors):
    """Another mapping with renamed tensors; `names` is {new: old}."""

    def __init__(self, tensors: Mapping[str, Any], names: Mapping[str, str]):
        super().__init__(names)
        self.tensors = plain(tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors.shape(self.parts[name])

    def dtype(self, name: str) -> str:
        return self.tensors.dtype(self.parts[name])

    def __getitem__(self, name):
        return self.tensors[self.parts[name]]
