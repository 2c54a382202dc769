"""What a training step and a decoding step need on accelerators that are not here: compiled ahead of time, nothing is run.

Needs `pip install libtpu`, which is the compiler for TPUs, or for an H100 `pip install "jax[cuda13]" absl-py`. Memory is what the
compiler plans. Operations are counted in the traced program (`jaxseq.train.flops`), memory traffic and collectives in the
compiled one (`jaxseq.bench.hlo`), all with the trips of loops. Times are lower bounds from the
chips' published rates, not measurements.
"""

import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jaxseq.bench import hlo, programs
from jaxseq.errors import UserError
from jaxseq.train import flops, prepare
from jaxseq.train import mesh as meshes
from jaxseq.train.step import Trainer

WHAT = ("train", "decode")
# Without them libtpu asks a metadata server, which does not exist here, for the type of this machine, and prints that it failed.
QUIET = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_HOSTNAMES": "localhost"}
QUIET |= {"TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3"}


class Chip(NamedTuple):
    """Published rates of one chip: bfloat16 operations, bytes of main memory, bytes to other chips, each per second; and the
    bytes of its main memory. A GPU has a file that describes it to XLA."""

    operations: float
    memory: float
    network: float
    capacity: float
    description: str = ""


# cloud.google.com/tpu/docs: v5e, v5p and v6e. NVIDIA's data sheet of the H100 SXM: without sparsity. The network rate is that of
# all links of a chip together, in one direction.
CHIPS = {
    "v5e": Chip(197e12, 819e9, 200e9, 16 * 2**30),
    "v5p": Chip(459e12, 2765e9, 600e9, 95 * 2**30),
    "v6e": Chip(918e12, 1640e9, 448e9, 32 * 2**30),
    "h100": Chip(989e12, 3352e9, 450e9, 80e9, "h100.pbtxt"),
}


def devices(topology: str) -> Sequence[Any]:
    """The chips of a topology such as "v5e:2x4" or "h100:8". Raises UserError without their compiler and for unknown ones."""
    kind = topology.partition(":")[0]
    if kind not in CHIPS:
        raise UserError(f"there is no --topology={topology}; write it like v5e:2x4 or h100:8; chips: {', '.join(CHIPS)}")
    try:
        return _gpus(topology) if CHIPS[kind].description else _tpus(topology)
    except UserError:
        raise
    except Exception as error:  # jaxlib raises errors of several types, with long messages
        example = "h100:8" if CHIPS[kind].description else "v5e:2x4"
        raise UserError(f"--topology={topology} does not exist ({str(error).splitlines()[0][:80]}); try {example}") from None


def _tpus(topology: str) -> Sequence[Any]:
    from jax.experimental import topologies

    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise UserError("compiling for TPUs needs their compiler; run: pip install libtpu") from None
    return topologies.get_topology_desc(topology, platform="tpu").devices


def _gpus(topology: str) -> Sequence[Any]:
    """GPUs of one machine."""
    from importlib.util import find_spec

    from jax.experimental import topologies

    if not any(find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)) or not find_spec("absl"):
        raise UserError("compiling for GPUs needs their compiler; run: pip install 'jax[cuda13]' absl-py")
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # there is no GPU whose driver could be checked
    kind, _, count = topology.partition(":")
    text = Path(__file__).with_name(CHIPS[kind].description).read_text(encoding="utf-8")
    return topologies.get_topology_desc("gpu", "cuda", target_config=text, topology=f"1x1x{int(count)}").devices


def record(name: str, config: ConfigDict, what: str, topology: str, context: int = 8192) -> dict[str, Any]:
    """The costs of one step, as JSON data; of one chip unless said otherwise.

    what: "train", a step of config.train on a batch, or "decode", one token for each of config.train.batch rows at a context of
    `context` tokens. The config's mesh is over all chips of the topology.
    """
    chips, chip = devices(topology), CHIPS[topology.partition(":")[0]]
    start = time.perf_counter()
    # JAX writes these programs to its cache, but cannot read them without a TPU.
    with warnings.catch_warnings(), jax.default_matmul_precision("default"):
        warnings.filterwarnings("ignore", message="Error reading persistent compilation cache")
        trainer = prepare(config, chips)
        traced = trainer.traced if what == "train" else _decoding(trainer, context)
        with trainer.scope():
            compiled = traced.lower().compile()
    seconds, found = time.perf_counter() - start, hlo.costs(compiled.as_text())
    products = flops.count_jaxpr(traced.jaxpr, flops.PRODUCTS) / len(chips)
    sent = sum(size for _, size in found.collectives.values())
    times = {"products": products / chip.operations, "memory": found.bytes / chip.memory, "network": sent / chip.network}
    bound = max(times, key=times.__getitem__)
    tokens = config.train.batch * (config.train.length if what == "train" else 1)
    return {
        "config": name, "what": what, "topology": topology, "chips": len(chips),
        "mesh": {axis: size for axis, size in trainer.mesh.shape.items() if size > 1},
        "parameters": sum(x.size for x in jax.tree.leaves(trainer.abstract.params)), "dtype": config.model.dtype,
        "batch": config.train.batch, "length": config.train.length if what == "train" else context,
        "memory_bytes": programs.planned(compiled), "capacity_bytes": chip.capacity,
        "operations": flops.count_jaxpr(traced.jaxpr) / len(chips), "products": products, "bytes": found.bytes,
        "collectives": {kind: list(value) for kind, value in found.collectives.items()}, "sent_bytes": sent,
        "unknown_loops": found.unknown, "seconds": times, "bound": bound, "step_seconds": times[bound],
        "share_of_products": times["products"] / times[bound], "tokens_per_second": tokens / times[bound],
        "compile_seconds": seconds,
    }  # fmt: skip


def _decoding(trainer: Trainer, context: int) -> jax.stages.Traced:
    """One token of each row, with weights in the dtype of the computation and the state updated in place."""
    model, mesh, rows = trainer.model, trainer.mesh, trainer.config.train.batch
    model.check_length(context)

    def weight(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        dtype = model.dtype if leaf.dtype == jnp.float32 else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)

    def of_row(leaf: jax.ShapeDtypeStruct, axis: int) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec(*[None] * axis, *meshes.batch_sharding(mesh, (rows,)).spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    params = jax.tree.map(weight, trainer.abstract.params)
    state = jax.eval_shape(lambda: model.init_state(rows, context))
    segments = jax.tree.map(lambda leaf: of_row(leaf, 1), state.segments)  # axis 0 is that of the layers
    state = state._replace(segments=segments, next_pos_B=of_row(state.next_pos_B, 0))
    token_B1 = of_row(jax.ShapeDtypeStruct((rows, 1), jnp.int32), 0)

    def step(params, state, token_B1):
        logits_BTV, state = model.apply({"params": params}, token_B1, state=state, form="recurrent")
        return jnp.argmax(logits_BTV, axis=-1).astype(jnp.int32), state

    with trainer.scope():
        return jax.jit(step, donate_argnums=1).trace(params, state, token_B1)
