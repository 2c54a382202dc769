"""Runs of earlier versions stay usable: two workdirs as version 0.1.0 wrote them evaluate, generate and go on as they did then.

Each was trained for 8 steps on the built-in addresses and stopped after step 4, its last checkpoint here:
`jaxseq train --config=NAME "--config.model.stack=2*(… …)" --config.model.width=32 --config.train.steps=8
--config.train.batch=4 --config.train.length=64 --config.train.checkpoint_every=4`. The .json beside it holds what that version
went on to print.
"""

import json
import tarfile

import pytest
from helpers.places import FILES

from jaxseq import cli
from jaxseq.config import from_dict
from jaxseq.train import metrics, train

FOLDER = FILES / "old_runs"
RUNS = sorted(path.name.removesuffix(".tar.xz") for path in FOLDER.glob("*.tar.xz"))


@pytest.fixture(scope="module", params=RUNS)
def run(request, tmp_path_factory):
    """(workdir, what the version that wrote it printed)."""
    workdir = tmp_path_factory.mktemp(request.param)
    with tarfile.open(FOLDER / f"{request.param}.tar.xz") as archive:
        archive.extractall(workdir, filter="data")
    return workdir, json.loads((FOLDER / f"{request.param}.json").read_text("utf-8"))


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


def test_an_old_run_goes_on_with_the_losses_it_had(run):
    """Last of this module: it adds checkpoints to the workdir."""
    workdir, old = run
    train(from_dict(json.loads((workdir / "config.json").read_text("utf-8"))), workdir)
    losses = {str(row["step"]): row["loss"] for row in metrics.read(workdir)}
    assert losses == pytest.approx(old["losses"], rel=1e-5)
