"""Run a function on each device's shards where XLA's partitioner would gather whole arrays or cannot split the function."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

Axes = tuple[str | None, ...]  # logical names, one per array axis

# Axes that a Pallas call may be split over, by their letters in the names of arrays: rows and heads are independent.
LETTERS = {"B": "batch", "H": "heads", "G": "kv_heads"}


def beside(params: Any, arrays: Any) -> Any:
    """`arrays` (a tree) replicated on the mesh of `params`; unchanged if `params` are on no mesh.

    A program with such parameters returns its state on the mesh. If the first state were elsewhere, jit would compile it twice.
    """
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return arrays
    return jax.device_put(arrays, NamedSharding(sharding.mesh, PartitionSpec()))


def mesh_axes(axes: Axes, shape: tuple[int, ...]) -> tuple[tuple[str, ...], ...]:
    """Mesh axes over which the current rules shard each axis of `shape`; none without a mesh or if they do not divide it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not nn.get_logical_axis_rules() or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return ((),) * len(axes)

    def splits(names, size: int) -> tuple[str, ...]:
        names = (names,) if isinstance(names, str) else names or ()
        names = tuple(name for name in names if mesh.shape[name] > 1)
        return names if size % math.prod(mesh.shape[name] for name in names) == 0 else ()

    return tuple(map(splits, nn.logical_to_mesh_axes(axes), shape))


def parts(axis: str, size: int) -> int:
    """Number of shards that the current rules split an array axis of this logical name and size into."""
    (names,) = mesh_axes((axis,), (size,))
    return math.prod(jax.sharding.get_abstract_mesh().shape[name] for name in names)


def _spec(axes: Axes, shape: tuple[int, ...]) -> PartitionSpec:
    return PartitionSpec(*(split or None for split in mesh_axes(axes, shape)))


def on_mesh(function: Callable, axes: tuple, out: Axes) -> Callable:
    """`function(*arrays)` applied to each device's shards by shard_map; `axes` is a tree of Axes that matches the arrays.

    The result has the axes `out` and is sharded like the first array. If no array is sharded, returns `function` itself.
    """

    def call(*arrays):
        is_axes = lambda x: isinstance(x, tuple) and all(name is None or isinstance(name, str) for name in x)  # noqa: E731
        specs = jax.tree.map(lambda names, x: _spec(names, x.shape), axes, arrays, is_leaf=is_axes)
        if not any(part for leaf in jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, PartitionSpec)) for part in leaf):
            return function(*arrays)
        return jax.shard_map(function, in_specs=specs, out_specs=_spec(out, arrays[0].shape), check_vma=False)(*arrays)

    return call


def by_letters(form: Callable) -> Callable:
    """A form of an op, `form(*xs, state=None, pos=None, **options) -> (y, state)`, on each device's rows and heads by shard_map.

    XLA cannot partition a Pallas call. The axes are read from the names of the parameters (q_BTHK) and of the fields of the state
    (k_BGSK): B, H and G are split as the mesh's rules say, all other axes are whole on each device. If one of H and G cannot be
    split, neither is: otherwise a query head would be on another device than its keys. Without a mesh `form` is called directly.
    """
    names = [name for name, p in inspect.signature(form).parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]

    def call(*xs, state=None, pos=None, **options):
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1:
            return form(*xs, state=state, pos=pos, **options)
        inputs = dict(zip(names, xs, strict=True)) | {"pos_BT": pos}
        given = {name: x for name, x in inputs.items() if x is not None}
        heads = [mesh_axes((LETTERS[c],), (n,)) for name, x in given.items() for c, n in _axes(name, x.shape) if c in "HG"]
        letters = {c: LETTERS[c] for c in LETTERS if c == "B" or all(split[0] for split in heads)}

        def spec(name: str, x: Any) -> PartitionSpec:
            return _spec(tuple(letters.get(c) for c, _ in _axes(name, x.shape)), x.shape)

        def specs(state: Any) -> Any:
            return type(state)(*(spec(name, x) for name, x in state._asdict().items()))

        def local(given, state):
            return form(*(given[name] for name in names), state=state, pos=given.get("pos_BT"), **options)

        y, after = jax.eval_shape(local, given, state)
        in_specs = {name: spec(name, x) for name, x in given.items()}, None if state is None else specs(state)
        out_specs = spec(names[0], y), specs(after)
        return jax.shard_map(local, in_specs=in_specs, out_specs=out_specs, check_vma=False)(given, state)

    return call


def _axes(name: str, shape: tuple[int, ...]) -> list[tuple[str, int]]:
    """[(letter, size)] of an array whose name ends in its letters, such as q_BTHK."""
    return list(zip(name.rpartition("_")[2], shape, strict=True))
