"""UniRepLKNet equals its authors' code, stage by stage, as trained and merged; round trips."""

import functools

import jax
import numpy as np
import pytest
from helpers.convert import check_round_trip, imported, oracle
from helpers.torch_file import state_dict

from jaxseq import cli, convert, registry
from jaxseq.models.unireplknet import merge
from jaxseq.testing import compare
from jaxseq.train import load_variables

SOURCE = "unireplknet"


def merged_tensors() -> dict:
    """The checkpoint after merging by the reference."""
    outputs = oracle(SOURCE)["output"]
    return {name.removeprefix("merged_param/"): x for name, x in outputs.items() if name.startswith("merged_param/")}


@functools.cache
def imported_merged():
    return convert.from_state_dict(SOURCE, oracle(SOURCE)["config"] | {"deploy": True}, merged_tensors())


def images():
    return np.moveaxis(oracle(SOURCE)["input"]["image"], 1, 3)


def check(model, variables, logits: str):
    outputs = oracle(SOURCE)["output"]
    run = jax.jit(lambda variables, images: (model.apply(variables, images), model.apply(variables, images, features=True)))
    got, maps = run(variables, images())
    for i, stage in enumerate(maps):  # the layer scale of 1e-6 hides whole blocks from the logits
        assert compare.error(np.moveaxis(stage, 3, 1), outputs[f"stage{i}"]) < 1e-5, i
    assert compare.error(got, outputs[logits]) < 1e-5


def test_as_trained():
    check(*imported(SOURCE, SOURCE), "train_form")


def test_merged_by_the_reference():
    model, params = imported_merged()
    check(model, {"params": params}, "merged_form")


def test_merged_by_us():
    model, variables = merge(*imported(SOURCE, SOURCE))
    check(model, variables, "merged_form")
    wanted = imported_merged()[1]
    assert compare.spec(variables["params"]) == compare.spec(wanted)
    assert compare.worst(variables["params"], wanted)[0] < 1e-5


def test_round_trip():
    check_round_trip(SOURCE, SOURCE)


def test_round_trip_merged():
    tensors, (model, params) = merged_tensors(), imported_merged()
    exported = convert.to_state_dict(SOURCE, model, params)
    assert sorted(exported) == sorted(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(exported[name], value, err_msg=name, strict=True)


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("merged", [False, True])
def test_config_from_names_and_shapes(merged, prefix):
    source = registry.load("convert.sources", SOURCE)
    tensors = merged_tensors() if merged else oracle(SOURCE)["param"]
    tensors = {prefix + name: x for name, x in tensors.items()}
    assert source.recognises({}, set(tensors))
    theirs = source.infer({name: x.shape for name, x in tensors.items()})
    wanted = imported_merged() if merged else imported(SOURCE, SOURCE)
    model, params = convert.from_state_dict(SOURCE, theirs, tensors)
    assert model == wanted[0]
    jax.tree.map(np.testing.assert_array_equal, params, wanted[1])


@pytest.mark.parametrize("merged", [False, True])
def test_a_released_file_becomes_a_workdir_and_goes_back(merged, tmp_path):
    """A torch file without a config, by the command line, with statistics and batch counts."""
    tensors = merged_tensors() if merged else oracle(SOURCE)["param"]
    file, workdir, out = state_dict(tmp_path / "model.pth", tensors), str(tmp_path / "run"), tmp_path / "out"
    assert cli.main(["import", str(file), workdir]) == 0
    _, variables, config = load_variables(workdir)
    assert set(variables) == ({"params"} if merged else {"params", "batch_stats"}) and config.model.merged is merged
    assert cli.main(["export", workdir, str(out), f"--source={SOURCE}"]) == 0
    _, _, exported = convert.open_source(out)
    assert set(exported) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(exported[name], value, err_msg=name, strict=True)
