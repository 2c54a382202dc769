"""Run a function on each device's shard where the partitioner would otherwise gather whole arrays."""

import math
from collections.abc import Callable

import jax
from flax import linen as nn
from jax.sharding import AxisType, PartitionSpec

Axes = tuple[str | None, ...]  # logical names, one per array axis


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


def on_mesh(function: Callable, axes: tuple, out: Axes) -> Callable:
    """`function(*arrays)` applied to each device's shards by shard_map; `axes` is a tree of Axes that matches the arrays.

    The result has the axes `out` and is sharded like the first array. If no array is sharded, returns `function` itself.
    """

    def spec(names: Axes, x: jax.Array) -> PartitionSpec:
        return PartitionSpec(*(split or None for split in mesh_axes(names, x.shape)))

    def call(*arrays):
        is_axes = lambda x: isinstance(x, tuple) and all(name is None or isinstance(name, str) for name in x)  # noqa: E731
        specs = jax.tree.map(spec, axes, arrays, is_leaf=is_axes)
        if not any(part for leaf in jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, PartitionSpec)) for part in leaf):
            return function(*arrays)
        return jax.shard_map(function, in_specs=specs, out_specs=spec(out, arrays[0]), check_vma=False)(*arrays)

    return call
