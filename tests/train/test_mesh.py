"""Meshes and sharding: the rules, then training on eight devices against training on one."""

import json

import jax
import numpy as np
import pytest
from helpers.train_tiny import finish, launch, tiny, write_documents
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from jaxseq.errors import UserError
from jaxseq.train import mesh as meshes
from jaxseq.train import train
from jaxseq.train.metrics import read

ONE = dict.fromkeys(meshes.AXES, 1)


def abstract(**sizes):
    return AbstractMesh(tuple((ONE | sizes).values()), meshes.AXES)


@pytest.mark.parametrize(
    ("names", "shape", "sizes", "expected"),
    [
        (("embed", "mlp"), (32, 64), {"fsdp": 8}, P("fsdp", None)),
        (("embed", "mlp"), (32, 64), {"fsdp": 2, "tensor": 4}, P("fsdp", "tensor")),
        (("layers", "mlp", "embed"), (8, 64, 32), {"fsdp": 8}, P(None, None, "fsdp")),
        (("vocab", "embed"), (257, 32), {"tensor": 2}, P(None, None)),
        (("embed", "heads", None), (36, 8, 16), {"fsdp": 8}, P(None, None, "fsdp")),
        (("embed", "heads", None), (36, 8, 16), {"fsdp": 8, "tensor": 8}, P(None, "tensor", "fsdp")),
        (("embed", "mlp"), (36, 64), {"fsdp": 8, "tensor": 2}, P(None, ("tensor", "fsdp"))),
        (("layers", "norm"), (8, 32), {"fsdp": 8}, P(None, "fsdp")),
        (("layers", None), (8, 3), {"fsdp": 8}, P(None, None)),
        (("expert", "embed", "mlp"), (4, 32, 64), {"expert": 4, "fsdp": 2}, P("expert", "fsdp", None)),
        ((), (), {"fsdp": 8}, P()),
    ],
)
def test_partition(names, shape, sizes, expected):
    assert meshes.partition(names, shape, abstract(**sizes)) == expected


def test_an_axis_that_is_not_split_is_named_once(caplog):
    with caplog.at_level("INFO", "jaxseq.train.mesh"):
        for names in (("vocab", "embed"), ("embed", "vocab")):  # an embedding and an untied head
            meshes.partition(names, tuple({"vocab": 263, "embed": 32}[name] for name in names), abstract(tensor=2))
    assert [record.getMessage() for record in caplog.records] == ["axis vocab of size 263 is not split over tensor=2"]


def test_the_mesh_must_use_every_device():
    devices = jax.devices()[:1]
    assert meshes.make_mesh(ONE | {"data": -1}, devices).shape["data"] == 1
    with pytest.raises(UserError, match="data=2 fsdp=4 needs 8 devices, but there are 1"):
        meshes.make_mesh(ONE | {"data": 2, "fsdp": 4}, devices)
    with pytest.raises(UserError, match="needs 3 devices, but there are 1"):
        meshes.make_mesh(ONE | {"tensor": 3, "fsdp": -1}, devices)
    with pytest.raises(UserError, match="one of them may be -1"):
        meshes.make_mesh(ONE | {"data": -1, "fsdp": -1}, devices)
    with pytest.raises(UserError, match=r"mesh\.tensor"):
        meshes.make_mesh(ONE | {"tensor": 0}, devices)


def test_rows_of_the_only_process():
    mesh = meshes.make_mesh(ONE, jax.devices()[:1])
    assert meshes.process_rows(mesh, 8) == (0, 1)
    batch = {"tokens": np.arange(24, dtype=np.int32).reshape(8, 3)}
    np.testing.assert_array_equal(meshes.put_batch(batch, mesh, 8)["tokens"], batch["tokens"])


ON_EIGHT = """
import json, pathlib, sys
import jax
from jaxseq.config import from_dict
from jaxseq.train import prepare, train
from jaxseq.train.mesh import local_bytes

assert len(jax.devices()) == 8
data, workdir = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2])
for name, sizes in data.pop("meshes").items():
    config = from_dict(data, **{f"mesh.{axis}": size for axis, size in sizes.items()})
    trainer = prepare(config)
    (state, batch), _ = trainer.compile().input_shardings
    leaves, shardings = jax.tree.leaves(trainer.abstract.params), jax.tree.leaves(state.params)
    held = sum(local_bytes(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding))
               for leaf, sharding in zip(leaves, shardings, strict=True))
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    losses = []
    train(config, workdir / name, progress=lambda record: losses.append(record["loss"]))
    print(json.dumps({"mesh": name, "losses": losses, "share": held / total,
                      "moments_like_params": [leaf.sharding == param.sharding for leaf, param in zip(
                          jax.tree.leaves(trainer.abstract.optimizer[1].mu), leaves, strict=True)]}), flush=True)
"""

MESHES = {
    "fsdp": {"fsdp": 8},
    "mixed": {"data": 2, "fsdp": 2, "tensor": 2},
}


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """(config, losses on one device, {mesh: output of eight devices}, workdir)."""
    folder = tmp_path_factory.mktemp("eight")
    config = tiny(write_documents(folder / "documents"), **{"train.steps": 4, "train.checkpoint_every": 2})
    process = launch(config, folder, devices=8, code=ON_EIGHT, meshes=MESHES)
    losses = []
    train(config, folder / "one", progress=lambda record: losses.append(record["loss"]), devices=jax.devices()[:1])
    reports = [json.loads(line) for line in finish(process, 300).splitlines()]
    return config, losses, {report["mesh"]: report for report in reports}, folder


@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_train_as_one_does(eight, name):
    _, losses, reports, _ = eight
    assert len(losses) == 4
    np.testing.assert_allclose(reports[name]["losses"], losses, rtol=2e-4)
    assert all(reports[name]["moments_like_params"])


def test_fsdp_gives_each_device_an_eighth_of_the_parameters(eight):
    _, _, reports, _ = eight
    assert reports["fsdp"]["share"] <= 1.1 / 8


def test_a_run_goes_on_on_another_number_of_devices(eight):
    """From eight devices to one and from one to eight: both continue from the same state and end in the same."""
    config, _, _, folder = eight
    moves = {"fsdp": (1, {}), "one": (8, {"fsdp": 2, "tensor": 2, "sequence": 2})}
    running = []
    for source, (devices, sizes) in moves.items():
        longer = config.copy_and_resolve_references()
        longer.update_from_flattened_dict({"train.steps": 5} | {f"mesh.{axis}": size for axis, size in sizes.items()})
        running.append(launch(longer, folder / source, devices=devices))
    assert [finish(process, 300).split() for process in running] == [["5"], ["5"]]
    records = [read(folder / source) for source in moves]
    assert [[record["step"] for record in run] for run in records] == [[1, 2, 3, 4, 5]] * 2
    np.testing.assert_allclose(records[0][-1]["loss"], records[1][-1]["loss"], rtol=2e-4)


COMPILES = """
import sys
import jax
from jaxseq.config import config
from jaxseq.train import prepare
small = {"train.batch": 8, "train.length": 32, "train.warmup": 0, "mesh.data": 2, "mesh.fsdp": 2, "model.width": 64}
kinds = {
    "gpt2": {"model.stack": "1*(attention mlp)", "model.vocab": 257},
    "bert": {"model.layers": 1, "model.heads": 4, "model.vocab": 258, "train.objective": "masked"},
    "t5": {"model.encoder_layers": 1, "model.decoder_layers": 1, "model.heads": 4, "model.vocab": 357, "train.objective": "span"},
}
for name, more in kinds.items():
    prepare(config(name, **small | more)).compile()
"""


def test_rows_over_two_axes_are_not_gathered_to_look_up_an_embedding(tmp_path):
    process = launch(tiny(tmp_path), tmp_path, 4, COMPILES)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    assert "Involuntary full rematerialization" not in err
