"""The device mesh and the sharding of every array of a run; only this module maps logical axis names to mesh axes.

Parameters have logical axis names ('embed', 'mlp', ...) and do not depend on the mesh; RULES lists the mesh axes over which each
name may be split. GSPMD (Xu et al. 2021, arXiv:2105.04663) does the rest: every axis is AxisType.Auto, because Linen's Dense
does not accept Explicit ones.
"""

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxseq.errors import UserError

AXES = ("data", "fsdp", "sequence", "tensor", "expert")
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "time": ("sequence",),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "expert": ("expert",),
    "layers": (),
}
Device: TypeAlias = Any  # jax.Device; type checkers do not know it, because jaxlib has no stubs
log = logging.getLogger(__name__)


def activation_rules(mesh: Mesh, sizes: Mapping[str, int]) -> tuple[tuple[str, tuple[str, ...] | None], ...]:
    """RULES for activations, in the format of `flax.linen.logical_axis_rules`.

    sizes: sizes of logical axes that may not be divisible by the mesh (a byte vocabulary of 257); such axes are not split.
    """

    def divides(name: str, axes: tuple[str, ...]) -> bool:
        return sizes.get(name, 0) % math.prod(mesh.shape[axis] for axis in axes) == 0

    return tuple((name, axes if axes and divides(name, axes) else None) for name, axes in RULES.items())


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Device] | None = None) -> Mesh:
    """The mesh of `config.mesh` over `devices` (all of them by default); one size may be -1, the rest of the devices.

    Raises UserError when the product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = {axis: int(sizes[axis]) for axis in AXES}
    rest = [axis for axis, size in shape.items() if size == -1]
    wrong = [axis for axis, size in shape.items() if size < 1 and size != -1]
    if wrong or len(rest) > 1:
        raise UserError(
            f"mesh sizes must be positive, and one of them may be -1 for the rest of the devices: got "
            f"{_sizes(shape)}; set mesh.{(wrong or rest)[-1]}"
        )
    known = math.prod(size for size in shape.values() if size != -1)
    if rest and len(devices) % known == 0:
        shape[rest[0]] = len(devices) // known
    product = math.prod(shape.values())
    if product != len(devices):
        raise UserError(
            f"the mesh {_sizes(shape)} needs {abs(product)} devices, but there are {len(devices)}; make the product of "
            "the mesh sizes equal the device count, for example with mesh.data=-1"
        )
    return jax.make_mesh(tuple(shape.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def _sizes(shape: Mapping[str, int]) -> str:
    return " ".join(f"{axis}={size}" for axis, size in shape.items() if size != 1) or "data=1"


@functools.cache
def _note_whole(name: str, size: int, axis: str, parts: int) -> None:
    """Logs, once for all arrays, that the logical axis `name` of this size is not split."""
    log.info("axis %s of size %d is not split over %s=%d", name, size, axis, parts)


def partition(names: Sequence[str | None], shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """The sharding of one parameter of `shape` with logical axis `names`.

    A dimension is not split if its size is not divisible by the mesh axis, or if the array already uses that mesh axis. A
    parameter that is not yet split over fsdp is split over it along the largest divisible dimension, except 'layers' (the scan
    slices that dimension, so every layer would gather the whole stack).
    """
    names = tuple(names) + (None,) * (len(shape) - len(names))
    split: list[list[str]] = [[] for _ in shape]
    used: set[str] = set()

    def take(dim: int, axis: str) -> bool:
        parts = math.prod(mesh.shape[a] for a in split[dim]) * mesh.shape[axis]
        if axis in used or mesh.shape[axis] == 1 or shape[dim] % parts:
            return False
        split[dim].append(axis)
        used.add(axis)
        return True

    for dim, name in enumerate(names):
        for axis in RULES.get(name, ()) if name else ():
            if not take(dim, axis) and mesh.shape[axis] > 1 and axis not in used:
                _note_whole(name, shape[dim], axis, mesh.shape[axis])
    if "fsdp" not in used:
        order = sorted((d for d in range(len(shape)) if names[d] != "layers"), key=lambda d: -shape[d])
        any(take(dim, "fsdp") for dim in order)
    return PartitionSpec(*(tuple(axes) if len(axes) > 1 else (axes[0] if axes else None) for axes in split))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
    """Sharding of an array [B, T, ...] or [B]: rows over data and fsdp, the second axis over sequence if it is divisible."""
    splits = len(shape) > 1 and shape[1] % mesh.shape["sequence"] == 0
    return NamedSharding(mesh, PartitionSpec(RULES["batch"], RULES["time"]) if splits else PartitionSpec(RULES["batch"]))


def check_batch(mesh: Mesh, batch: int, length: int, accumulate: int) -> None:
    """Raises UserError when [batch, length] does not split into `accumulate` micro-batches over the mesh."""
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    if accumulate < 1 or batch < 1 or batch % (rows * accumulate):
        raise UserError(
            f"train.batch={batch} does not divide into train.accumulate={accumulate} micro-batches over "
            f"{rows} devices (mesh.data x mesh.fsdp); make it a multiple of {rows * max(accumulate, 1)}"
        )
    if length < 1 or length % mesh.shape["sequence"]:
        raise UserError(f"train.length={length} does not divide over mesh.sequence={mesh.shape['sequence']}; make it a multiple")


def process_rows(mesh: Mesh, batch: int) -> tuple[int, int]:
    """(index, count): which of `count` equal blocks of the global batch's rows this process feeds.

    Processes whose devices hold the same rows (a tensor axis across hosts) get the same block.
    """
    spans = [index[0].indices(batch)[:2] for index in _local_indices(mesh, (batch,))]
    start, stop = min(s for s, _ in spans), max(e for _, e in spans)
    return start // (stop - start), batch // (stop - start)


def _local_indices(mesh: Mesh, shape: tuple[int, ...]) -> list[tuple[slice, ...]]:
    rows = NamedSharding(mesh, PartitionSpec(RULES["batch"]))
    return [index for index in rows.addressable_devices_indices_map(shape).values() if index is not None]


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, rows: int) -> dict[str, jax.Array]:
    """This process's block of rows [b, ...] as global arrays [rows, T, ...] on the mesh."""
    index, _ = process_rows(mesh, rows)

    def put(local: np.ndarray) -> jax.Array:
        offset = index * local.shape[0]

        def block(at) -> np.ndarray:  # at: one slice per axis
            start, stop, _ = at[0].indices(rows)
            return local[(slice(start - offset, stop - offset), *at[1:])]

        shape = (rows, *local.shape[1:])
        return jax.make_array_from_callback(shape, batch_sharding(mesh, shape), block)

    return {name: put(np.asarray(array)) for name, array in batch.items()}


def local_bytes(array: jax.Array | jax.ShapeDtypeStruct) -> int:
    """Bytes of `array` that one device holds."""
    return math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize
