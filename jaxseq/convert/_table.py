"""The table of a source: how its tensors map to our parameters, in both directions.

Our layers are stacked, theirs are separate: an entry with `layers` is read and written layer by layer, so that a conversion
never holds more than the output and one tensor. All names and shapes are checked before the first tensor is read.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxseq.errors import UserError

SHOWN = 12  # maximum number of names of each kind in a message


class Entry(NamedTuple):
    """Maps some of their tensors to some of our leaves. `forward(*theirs)` and `backward(*ours)` return tuples and are exact
    inverses; they take numpy arrays without the layer axis.

    ours: paths like "blocks_0/attention/q/kernel"; empty for a buffer of theirs, which import drops and export recreates.
    theirs: names, with "{layer}" for each number in `layers`; the i-th of them is row i of the stacked leaf.
    optional: their tensors may be absent on import (only if `ours` is empty); export always writes them.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    forward: Callable[..., tuple]
    backward: Callable[..., tuple]
    layers: Sequence[int] | None = None
    optional: bool = False

    def names(self, layer: int | None) -> list[str]:
        return [name.replace("{layer}", str(layer)) for name in self.theirs]

    def rows(self) -> Iterator[tuple[int | None, list[str]]]:
        """(row of our leaves or None, their names)"""
        if self.layers is None:
            yield None, self.names(None)
        else:
            yield from ((row, self.names(layer)) for row, layer in enumerate(self.layers))


def same(ours: str, theirs: str, layers: Sequence[int] | None = None) -> Entry:
    """The tensor unchanged."""
    return Entry((ours,), (theirs,), lambda x: (x,), lambda x: (x,), layers)


def reshaped(ours: str, theirs: str, shape: Sequence[int], other: Sequence[int], layers: Sequence[int] | None = None) -> Entry:
    """The same numbers in the same order: ours has `shape`, theirs `other`."""
    return Entry((ours,), (theirs,), lambda x: (x.reshape(shape),), lambda x: (x.reshape(other),), layers)


def linear(
    ours: str, theirs: str, layers: Sequence[int] | None = None, shape: Sequence[int] | None = None, inputs: int = 1
) -> Entry:
    """A torch matrix (outputs, inputs) to our kernel of `shape`, whose first `inputs` axes are the inputs."""
    if shape is None:
        return Entry((ours,), (theirs,), lambda w: (w.T,), lambda w: (w.T,), layers)
    rows, columns = math.prod(shape[:inputs]), math.prod(shape[inputs:])
    return Entry(
        (ours,), (theirs,), lambda w: (w.T.reshape(shape),), lambda w: (w.reshape(rows, columns).T,), layers
    )  # fmt: skip


def norm(ours: str, theirs: str, layers: Sequence[int] | None = None, bias: bool = True) -> list[Entry]:
    """ours/scale (and bias) from theirs.weight (and .bias)."""
    pairs = [("scale", "weight"), ("bias", "bias")][: 2 if bias else 1]
    return [same(f"{ours}/{a}", f"{theirs}.{b}", layers) for a, b in pairs]


def split(
    ours: Sequence[str], theirs: str, sizes: Sequence[int], layers: Sequence[int] | None = None,
    maps: Sequence[tuple[Callable, Callable]] | None = None, axis: int = 0,
) -> Entry:  # fmt: skip
    """One tensor of theirs cut along `axis` into ours. `maps` has (forward, backward) for each piece (default: unchanged)."""
    cuts = np.cumsum(sizes)[:-1]
    maps = maps or [(lambda x: x, lambda x: x)] * len(ours)

    def forward(x):
        return tuple(f(piece) for (f, _), piece in zip(maps, np.split(x, cuts, axis), strict=True))

    def backward(*pieces):
        return (np.concatenate([b(piece) for (_, b), piece in zip(maps, pieces, strict=True)], axis),)

    return Entry(tuple(ours), (theirs,), forward, backward, layers)


def buffer(theirs: str, value: Any, layers: Sequence[int] | None = None, optional: bool = True) -> Entry:
    """A tensor that they store and we compute: import drops it, export writes `value`."""
    value = np.asarray(value)
    return Entry((), (theirs,), lambda x: (), lambda: (value,), layers, optional)


def flatten(tree: Any) -> dict[str, Any]:
    """{"a/b/c": leaf}"""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(flat: Mapping[str, Any]) -> dict:
    tree: dict = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)[last] = leaf
    return tree


def load(entries: Sequence[Entry], tensors: Mapping[str, Any], abstract: Any, place: Callable, aliases: Mapping[str, str]) -> Any:
    """Our parameter tree, with the shapes and dtypes of `abstract`. `place(leaf, like)` puts a numpy leaf on its devices.

    aliases: {their name for an optional second copy of a tensor: the name of the tensor that it must equal}.

    Raises UserError that lists tensors that are missing, unexpected or of the wrong shape by name.
    """
    wanted = flatten(abstract)
    _complete(entries, wanted)
    _check(entries, tensors, wanted, aliases)
    done: dict[str, Any] = {}
    for entry in entries:
        if not entry.ours:
            continue
        if entry.layers is None:
            values = entry.forward(*(np.asarray(tensors[name]) for name in entry.theirs))
            leaves = {path: _owned(value, wanted[path]) for path, value in zip(entry.ours, values, strict=True)}
            del values
        else:
            leaves = {path: _aligned(wanted[path]) for path in entry.ours}
            for row, names in entry.rows():
                for path, value in zip(entry.ours, entry.forward(*(np.asarray(tensors[n]) for n in names)), strict=True):
                    leaves[path][row] = value
        for path in entry.ours:
            done[path] = place(leaves.pop(path), wanted[path])
    for name, original in aliases.items():
        if name in tensors and original in tensors and not np.array_equal(tensors[name], tensors[original]):
            raise UserError(f"{name} is tied to {original}, but their values differ; this checkpoint is not tied")
    return unflatten({path: done[path] for path in wanted})


def _aligned(like) -> np.ndarray:
    """Uninitialised memory, aligned so that a CPU device can use it without a copy."""
    dtype = np.dtype(like.dtype)
    size = math.prod(like.shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(like.shape)


def _owned(value: np.ndarray, like) -> np.ndarray:
    leaf = _aligned(like)
    leaf[...] = value
    return leaf


def dump(entries: Sequence[Entry], params: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Their (name, tensor) pairs, one at a time."""
    leaves = flatten(params)
    _complete(entries, leaves)
    for entry in entries:
        for row, names in entry.rows():
            ours = [np.asarray(leaves[path]) if row is None else np.asarray(leaves[path][row]) for path in entry.ours]
            tensors = (np.asarray(x, order="C") for x in entry.backward(*ours))  # ascontiguousarray turns 0-d into 1-d
            yield from zip(names, tensors, strict=True)


def _complete(entries: Iterable[Entry], wanted: Mapping[str, Any]) -> None:
    """Checks that every leaf of ours has exactly one entry; a failure is a bug in the table, not in the checkpoint."""
    paths = [path for entry in entries for path in entry.ours]
    if sorted(paths) != sorted(wanted):
        wrong = sorted(set(paths) ^ set(wanted)) or sorted({path for path in paths if paths.count(path) > 1})
        raise ValueError(f"this table and the model's parameters differ in {wrong}")


def _check(entries: Sequence[Entry], tensors: Any, wanted: Mapping[str, Any], aliases: Mapping[str, str]) -> None:
    """Checks names, shapes and dtypes of `tensors` (`_tensors.Tensors`) without reading any values."""
    known, missing, misshaped, packed = set(aliases), [], [], []
    count = sum(len(entry.theirs) * (1 if entry.layers is None else len(entry.layers)) for entry in entries)
    if count > 10 * len(tensors) + 10_000:  # listing them all would take too long
        raise UserError(f"the config describes a model of {count:,} tensors, but there are {len(tensors):,}; give its own config")
    total = sum(math.prod(tensors.shape(name)) for name in tensors)
    for entry in entries:
        shapes = _shapes(entry, total, wanted)
        floats = bool(entry.ours) and all(_is_float(wanted[path].dtype) for path in entry.ours)
        for _, names in entry.rows():
            for name, shape in zip(names, shapes, strict=True):
                known.add(name)
                if name not in tensors:
                    missing += [] if entry.optional else [name]
                    continue
                if tuple(tensors.shape(name)) != tuple(shape):
                    misshaped.append(f"{name} is {tuple(tensors.shape(name))}, wanted {tuple(shape)}")
                if floats and not _is_float(tensors.dtype(name)):
                    packed.append(f"{name} is {tensors.dtype(name)}")
    if packed:
        raise UserError(
            f"these weights are packed or quantised ({len(packed)} of them: {_some(packed)}), and such dtypes need "
            "scales to be weights; save the model in float32, bfloat16 or float16 with the library that packed it"
        )
    unexpected = sorted(set(tensors) - known)
    kinds = {"missing": missing, "unexpected": unexpected, "mis-shaped": misshaped}
    if any(kinds.values()):
        text = "; ".join(f"{kind} ({len(names)}): {_some(names)}" for kind, names in kinds.items() if names)
        text += _prefix(missing, unexpected)
        raise UserError(f"these tensors are not those of the model that the config describes; {text}")


def _shapes(entry: Entry, total: int, wanted: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """Shapes of one layer's tensors. `backward` may copy, so it is not called for more values than the `total` in the file."""
    shapes = [wanted[path].shape[entry.layers is not None :] for path in entry.ours]
    if (count := sum(map(math.prod, shapes))) > max(total, 1 << 20):
        raise UserError(
            f"{entry.names(entry.layers[0] if entry.layers else None)[0]} would have {count:,} numbers by the config, more than "
            f"all tensors together ({total:,}); give the config.json of this checkpoint"
        )
    try:
        return [np.shape(x) for x in entry.backward(*(np.broadcast_to(np.float32(0), shape) for shape in shapes))]
    except ValueError as error:
        raise UserError(f"the config's sizes do not fit each other at {entry.theirs[0]} ({error}); give its own config") from None


def _is_float(dtype: Any) -> bool:
    """Whether the dtype is a plain float of 64, 32 or 16 bits. Smaller floats need scales."""
    return str(np.dtype(dtype) if not isinstance(dtype, str) else dtype) in ("float64", "float32", "float16", "bfloat16")


def _prefix(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """A hint if all missing tensors are present under a longer name."""
    longer = [next((name for name in unexpected if name.endswith(f".{wanted}")), None) for wanted in missing[:100]]
    prefixes = {name and name.removesuffix(wanted) for name, wanted in zip(longer, missing, strict=False)}
    return f"; they are there as {prefixes.pop()}…: leave that prefix out" if len(prefixes) == 1 and None not in prefixes else ""


def _some(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
