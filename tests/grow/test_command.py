"""`jaxseq grow`: a workdir that evaluates as the one it was made from, and that training continues."""

import json

import pytest
from helpers.train_tiny import tiny, write_documents

from jaxseq.cli import main
from jaxseq.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    more = {"model.stack": "2*(attention swiglu)", "model.dropout": 0.0, "train.steps": 8}
    train(tiny(write_documents(folder / "documents"), **more), folder / "run")
    return folder / "run"


def printed(capsys, *words) -> dict:
    status = main([*words, "--json"])
    found = capsys.readouterr()
    assert status == 0, found.err
    return json.loads(found.out)


@pytest.mark.slow
def test_a_grown_run_goes_on(run, tmp_path, capsys):
    large, more = tmp_path / "large", tmp_path / "more"
    found = printed(capsys, "grow", f"--workdir={run}", "--recipe=layers:2+experts:2", f"--out={large}")
    assert found["difference"] < 1e-5 and found["stack"] == "4*(attention moe:swiglu)"
    assert found["after"]["parameters"] > 2 * found["before"]["parameters"]
    before, after = (printed(capsys, "eval", f"--workdir={folder}") for folder in (run, large))
    assert after["bits_per_byte"] == pytest.approx(before["bits_per_byte"], rel=1e-5)
    train_words = ["train", f"--config={large}", f"--config.train.init={large}", f"--workdir={more}", "--config.train.steps=10"]
    assert main(train_words) == 0
    capsys.readouterr()
    assert printed(capsys, "eval", f"--workdir={more}")["bits_per_byte"] < before["bits_per_byte"]


def test_refusals(run, tmp_path, capsys):
    small, out = tmp_path / "small", f"--out={tmp_path / 'out'}"
    assert main(["compress", f"--workdir={run}", "--recipe=int8", f"--out={small}"]) == 0
    for folder, recipe, message in (
        (small, "layers:2", "quantized, pruned or adapted"),
        (run, "layers", "layers: needs a number"),
        (run, "int8", "there is no step 'int8'"),
    ):
        capsys.readouterr()
        assert main(["grow", f"--workdir={folder}", f"--recipe={recipe}", out]) == 2
        error = capsys.readouterr().err
        assert message in error.splitlines()[-1] and "Traceback" not in error
    assert not (tmp_path / "out").exists()
