"""Compile for TPUs on a machine that has none; needs `pip install libtpu`."""

import os
import warnings

import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec


def compile_for_tpu(function, *arguments: jax.ShapeDtypeStruct, topology: str = "v5e:2x4") -> jax.stages.Compiled:
    """`function` compiled for all chips of the topology, axis 0 of every argument and result split over them.

    `arguments` are the whole shapes; inside, `function` sees one chip's share, as Pallas calls must (jax.shard_map). The
    result's memory_analysis() counts the bytes of one chip; a program that does not fit raises RESOURCE_EXHAUSTED.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # otherwise libtpu asks a metadata server that is not there
    description = topologies.get_topology_desc(topology, platform="tpu")
    mesh = topologies.make_mesh(description, (len(description.devices),), ("data",))
    split = PartitionSpec("data")
    arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, split)) for x in arguments]
    mapped = jax.shard_map(function, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
    lowered = jax.jit(mapped).lower(*arguments)
    with warnings.catch_warnings():  # JAX writes such programs into its persistent cache but cannot read them without a TPU
        warnings.filterwarnings("ignore", message="Error reading persistent compilation cache")
        return lowered.compile()
