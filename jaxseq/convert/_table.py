"""A checkpoint's layout as a table: which of our leaves come from which of its tensors, and how, both ways.

Our leaves of a segment are stacked over its layers; a name of theirs that contains "{layer}" stands for one tensor a layer.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxseq.errors import UserError

Arrays = tuple[np.ndarray, ...]


class Entry(NamedTuple):
    """forward(*theirs) -> ours and backward(*ours) -> theirs, one layer at a time where `layers` is not None."""

    ours: tuple[str, ...]  # paths "blocks_0/attention/q/kernel"
    theirs: tuple[str, ...]  # tensor names, with "{layer}" where there is one a layer
    forward: Callable[..., Arrays]
    backward: Callable[..., Arrays]
    layers: range | None = None  # layer numbers in the checkpoint, in the order of our stack


def same(ours: str, theirs: str, shape: Sequence[int] | None = None) -> Entry:
    """The same numbers, in another shape if theirs is said."""
    return Entry(
        (ours,), (theirs,), lambda x: (x,), lambda x: (x if shape is None else x.reshape(shape),)
    )  # our shape is restored from the model


def linear(ours: str, theirs: str) -> Entry:
    """torch's (outputs, inputs) against our inputs first; heads and channels are one axis there."""

    def backward(kernel):
        return (kernel.T,)

    return Entry((ours,), (theirs,), lambda weight: (weight.T,), backward)


def per_layer(entries: Iterable[Entry], block: str, layers: range) -> list[Entry]:
    """Entries of one layer, for every layer of a segment: our paths below `block`."""
    return [e._replace(ours=tuple(f"{block}/{path}" for path in e.ours), layers=layers) for e in entries]


def names(table: Sequence[Entry]) -> set[str]:
    """Every tensor name that the table reads."""
    return {
        name.format(layer=layer) for e in table for name in e.theirs for layer in ([None] if e.layers is None else e.layers)
    }


def check_names(table: Sequence[Entry], tensors: Iterable[str], ignored: Callable[[str], bool] = lambda name: False) -> None:
    """Raises UserError that lists tensors the table wants and the checkpoint lacks, or has and nobody reads."""
    wanted, there = names(table), {name for name in tensors if not ignored(name)}
    problems = [f"missing {n}" for n in sorted(wanted - there)] + [f"unexpected {n}" for n in sorted(there - wanted)]
    if problems:
        more = f" and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise UserError(f"the tensors are not those of this architecture: {', '.join(problems[:12])}{more}; check source and config")


def load(table: Sequence[Entry], tensors: Mapping[str, np.ndarray], shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Our leaves by path, filled one tensor at a time. Raises UserError naming what has the wrong size."""
    out: dict[str, np.ndarray] = {}
    for e in table:
        for path in e.ours:
            out[path] = np.empty(shapes[path].shape, shapes[path].dtype)
        for row, layer in enumerate([None] if e.layers is None else e.layers):
            read = tuple(np.asarray(tensors[name.format(layer=layer)]) for name in e.theirs)
            for path, value in zip(e.ours, e.forward(*read), strict=True):
                target = out[path] if e.layers is None else out[path][row]
                if value.size != target.size:
                    found = ", ".join(f"{n.format(layer=layer)} {r.shape}" for n, r in zip(e.theirs, read, strict=True))
                    raise UserError(f"{found} does not fit {path} {target.shape}; check the config that came with the weights")
                target[...] = value.reshape(target.shape)
    if missing := sorted(set(shapes) - set(out)):
        raise AssertionError(f"the table fills no {missing}")
    return out


def dump(table: Sequence[Entry], leaves: Mapping[str, np.ndarray], widths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Their tensors by name; `widths` gives the number of input axes of each kernel that `linear` flattens."""
    out: dict[str, np.ndarray] = {}
    for e in table:
        for row, layer in enumerate([None] if e.layers is None else e.layers):
            parts = tuple(leaves[path] if e.layers is None else leaves[path][row] for path in e.ours)
            flat = tuple(_matrix(part, widths[path]) if path in widths else part for path, part in zip(e.ours, parts, strict=True))
            for name, value in zip(e.theirs, e.backward(*flat), strict=True):
                out[name.format(layer=layer)] = np.ascontiguousarray(value)
    return out


def _matrix(kernel: np.ndarray, inputs: int) -> np.ndarray:
    return kernel.reshape(int(np.prod(kernel.shape[:inputs])), -1)
