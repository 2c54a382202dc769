"""The law of sharding: several devices compute the same as one.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m jaxseq.testing.sharding retention retnet

checks ops and architectures by name and prints the largest error of each. Ops are checked with the batch sharded, with the
sequence sharded by the partitioner, and, if the op has a `summary`, with the sequence sharded by exchanging summaries. For an
architecture, loss and gradients of a training step are checked on every mesh of `meshes`.
"""

import functools
import json
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxseq
from jaxseq import registry
from jaxseq.compat import enable_x64
from jaxseq.testing import compare
from jaxseq.testing.check import Check
from jaxseq.testing.subjects import BATCH, OpSubject, patterns, quick

AXIS = "parts"
MESHES = {
    "data": {"data": 8},
    "fsdp": {"fsdp": 8},
    "tensor": {"data": 2, "tensor": 4},
    "rows and tensors": {"data": 2, "fsdp": 2, "tensor": 2},
    "sequence": {"data": 2, "sequence": 4},
    "fsdp and sequence": {"fsdp": 2, "sequence": 4},
}
EXPERTS = {"experts": {"fsdp": 4, "expert": 2}}  # for stacks with a mixture of experts
ALLOWED = 2e-4  # error of loss and gradients of a model in float32, relative to the largest value of each array


def ops(subject: OpSubject) -> dict[str, float]:
    """{sharding: largest error} of an op in float64. Raises LawBroken."""
    check, form = Check(subject, "sharding"), "chunkwise"
    count = jax.device_count()
    mesh = jax.make_mesh((count,), (AXIS,), axis_types=(AxisType.Auto,))
    case, time = subject.case(np.float64), count * (subject.whole // count)
    pos = np.resize(patterns(time, subject.next_position), (count, time))
    order = np.arange(count) % BATCH
    xs, state = tuple(x[order] for x in case.part(0, time)), subject.rows(case.state, order)
    wanted = subject.run("recurrent", np.float64, xs, case.weights, state, pos)

    def on(spec: PartitionSpec, tree: Any) -> Any:
        return jax.device_put(tree, NamedSharding(mesh, spec))

    def held(name: str, function, xs, state, pos) -> float:
        got = jax.device_get(jax.jit(function, compiler_options=quick())(xs, case.weights, state, pos))
        check.largest = 0.0
        check.result(got, wanted, form, time, f"{name} split over {count} devices: ")
        return check.largest

    call = functools.partial(subject.call, form, np.float64)
    rows, steps = PartitionSpec(AXIS), PartitionSpec(None, AXIS)
    found = {"rows": held("rows", call, on(rows, xs), on(rows, state), on(rows, pos))}
    found["sequence"] = held("a sequence", call, on(steps, xs), on(PartitionSpec(), state), on(steps, pos))
    if hasattr(subject.op, "summary"):
        function = functools.partial(_exchanged, subject, form, mesh)
        found["summaries"] = held("a sequence", function, on(steps, xs), on(PartitionSpec(), state), on(steps, pos))
    return found


def _exchanged(subject: OpSubject, form: str, mesh, xs, weights, state, pos):
    """Run a sharded sequence: each device computes its summary, all gather the summaries, each runs from its incoming state."""
    op, count = subject.op, mesh.size
    options = subject.options_of(op.summary, subject.options)

    def local(xs, weights, state, pos):
        own = op.summary(*xs, pos=pos, **weights, **options)
        parts, index = jax.lax.all_gather(own, AXIS), jax.lax.axis_index(AXIS)
        for number in range(count):
            after = op.apply(jax.tree.map(lambda x, number=number: x[number], parts), state)
            state = jax.tree.map(lambda new, old, number=number: jnp.where(number < index, new, old), after, state)
        y, state = subject.call(form, np.float64, xs, weights, state, pos)
        return y, jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS)[-1], state)  # of the last device

    steps, whole = PartitionSpec(None, AXIS), PartitionSpec()
    specs = (steps, whole, whole, steps)
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(steps, whole), check_vma=False)(xs, weights, state, pos)


def meshes(name: str) -> dict[str, dict[str, int]]:
    """{mesh: its sizes}, the meshes of eight devices on which an architecture is checked."""
    return MESHES | (EXPERTS if "moe" in jaxseq.config(name).model.stack else {})


def models(name: str) -> dict[str, float]:
    """{mesh: largest error} of a training step's loss and gradients, against one device. Raises LawBroken."""
    from jaxseq.train import prepare

    stack = re.sub(r"\d+\s*\*", "2*", jaxseq.config(name).model.stack)
    fields = {"model.stack": stack, "model.width": 32, "model.vocab": 16, "train.batch": 8, "train.length": 32}
    batch = _batch((8, 32))

    def step(devices, sizes):
        trainer = prepare(jaxseq.config(name, **fields, **{f"mesh.{axis}": n for axis, n in sizes.items()}), devices)
        state, shardings = trainer.init(), {key: leaf.sharding for key, leaf in trainer.abstract_batch().items()}
        with trainer.scope():
            grads, values, _ = jax.jit(trainer.gradients)(state, jax.device_put(batch, shardings))
        return jax.device_get((values["loss"], grads))

    wanted, found = step(jax.devices()[:1], {}), {}
    for mesh, sizes in meshes(name).items():
        loss, grads = step(None, sizes)
        error, where = max(compare.worst(loss, wanted[0]), compare.worst(grads, wanted[1], share=1e-3))
        if not error <= ALLOWED:
            raise compare.LawBroken(f"{name} breaks the law 'sharding' ({mesh}: {sizes}): {where} differs by {error:.2e}")
        found[mesh] = error
    return found


def _batch(shape: tuple[int, int]) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(0, 16, (shape[0], shape[1] + 1)).astype(np.int32)
    pos = np.tile(np.arange(shape[1], dtype=np.int32), (shape[0], 1))
    pos[1::2, shape[1] // 3 :] -= shape[1] // 3  # another document begins
    return {"tokens": ids[:, :-1], "targets": ids[:, 1:], "pos": pos, "weights": np.ones(shape, np.float32)}


def main(names: list[str]) -> None:
    for name in names:
        found = {}
        if name in registry.names("ops"):
            with enable_x64(True), jax.default_matmul_precision("highest"):
                found |= ops(OpSubject(registry.load("ops", name)))
        if name in jaxseq.names():
            with jax.default_matmul_precision("highest"):
                found |= models(name)
        print(json.dumps({"name": name, "errors": found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
