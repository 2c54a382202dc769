"""Ahead-of-time compilation for TPUs on a machine without TPU; needs `pip install libtpu`."""

import os
import warnings
from collections.abc import Callable

import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec


def compile_for_tpu(function: Callable, *arguments: jax.ShapeDtypeStruct, topology: str = "v5e:2x4") -> jax.stages.Compiled:
    """`function` compiled for all chips of the topology, with axis 0 of all arguments and results sharded over them.

    `arguments` have global shapes; `function` gets the shard of one chip (jax.shard_map), as Pallas calls require. In the result,
    memory_analysis() counts the bytes of one chip. Raises RESOURCE_EXHAUSTED for a program that does not fit.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # otherwise libtpu queries a metadata server, which does not exist here
    description = topologies.get_topology_desc(topology, platform="tpu")
    mesh = topologies.make_mesh(description, (len(description.devices),), ("data",))
    split = PartitionSpec("data")
    placed = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, split)) for x in arguments]
    mapped = jax.shard_map(function, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
    lowered = jax.jit(mapped).lower(*placed)
    with warnings.catch_warnings():  # JAX writes these programs to its persistent cache but cannot read them without a TPU
        warnings.filterwarnings("ignore", message="Error reading persistent compilation cache")
        return lowered.compile()
