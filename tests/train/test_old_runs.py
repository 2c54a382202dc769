"""Runs of earlier versions stay usable: two workdirs of version 0.1.0 evaluate, generate and resume as they did then.

Each was trained for 8 steps on the built-in addresses; the checkpoint here is that of step 4:
`jaxseq train --config=NAME` with the fields of GIVEN and STACKS. The .json next to it has the further output of that version,
defaults_0.json its built-in configs.
"""

import json
import tarfile

import pytest
from helpers.places import FILES

from jaxseq import cli, schemas
from jaxseq.train import metrics

FOLDER = FILES / "old_runs"
GIVEN = {
    "model.width": 32, "train.steps": 8, "train.batch": 4, "train.length": 64, "train.warmup": 2, "train.checkpoint_every": 4,
    "train.log_every": 1, "eval.batch": 4, "eval.documents": 1,
}  # fmt: skip
STACKS = {
    "retnet": {"model.stack": "2*(retention mlp)", "model.retention.heads": 2},
    "transformer": {"model.stack": "2*(attention swiglu)"},
}
RUNS = sorted(path.name.removesuffix(".tar.xz") for path in FOLDER.glob("*.tar.xz"))


@pytest.fixture(scope="module", params=RUNS)
def run(request, tmp_path_factory):
    """(workdir, output of the version that wrote it)."""
    workdir = tmp_path_factory.mktemp(request.param)
    with tarfile.open(FOLDER / f"{request.param}.tar.xz") as archive:
        archive.extractall(workdir, filter="data")
    return workdir, json.loads((FOLDER / f"{request.param}.json").read_text("utf-8")) | {"config": request.param}


def result(capsys, *words):
    assert cli.main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_an_old_run_evaluates_as_it_did(run, capsys):
    workdir, old = run
    assert result(capsys, "eval", f"--workdir={workdir}")["bits_per_byte"] == pytest.approx(old["bits_per_byte"], rel=1e-5)


@pytest.mark.parametrize("sampling", ["--temperature=0", "--seed=3"])
def test_an_old_run_generates_what_it_did(run, sampling, capsys):
    workdir, old = run
    words = ("generate", f"--workdir={workdir}", "--prompt=The state of", "--max_tokens=24", sampling)
    assert result(capsys, *words)["tokens"] == [old["tokens"][sampling]]


def test_an_old_run_goes_on_with_the_losses_it_had(run, capsys):
    """By the name of its config, whose defaults have changed since. Last in this module, because it adds checkpoints to the
    workdir."""
    workdir, old = run
    words = [f"--config.{field}={value}" for field, value in (GIVEN | STACKS[old["config"]]).items()]
    again = ["train", f"--workdir={workdir}", f"--config={old['config']}", *words]
    result(capsys, *again)
    losses = {str(row["step"]): row["loss"] for row in metrics.read(workdir)}
    assert losses == pytest.approx(old["losses"], rel=1e-5)
    written = json.loads((workdir / "config.json").read_text("utf-8"))
    assert (written["schema"], written["begun"]) == (schemas.SCHEMA, 0)
    assert result(capsys, *again)["step"] == result(capsys, *again[:2])["step"] == 8  # nothing is left to do
