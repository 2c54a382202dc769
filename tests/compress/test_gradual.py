"""Pruning in rounds with training between them."""

import json
import os
import signal

import numpy as np
import pytest
from helpers.train_tiny import trained

from jaxseq import cli, weights
from jaxseq.compress import _gradual
from jaxseq.train import load
from jaxseq.train.checkpoints import steps
from jaxseq.train.records import Records


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a small trained Transformer."""
    return trained(tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("documents"))


def words(run, out, *more: str) -> list[str]:
    recipe = "--recipe=channels:0.25+magnitude:0.8"
    return ["compress", f"--workdir={run}", f"--out={out}", recipe, "--json", "--tokens=256", *more]


def zeros(folder) -> dict[str, float]:
    """The share of zeros of each pruned matrix."""
    params = load(folder)[1]
    return {path: float(np.mean(np.asarray(x) == 0)) for path, x in weights.leaves(params).items() if path.endswith("kernel/w")}


def test_the_shares_are_those_of_the_paper():
    assert _gradual.shares(0.8, 4) == [0.4625, 0.7, 0.7875, 0.8]


@pytest.mark.slow
def test_rounds_reach_the_share_and_lose_less_than_one(run, tmp_path, capsys, monkeypatch):
    """Also if the command was stopped in the second round."""
    more = "--rounds=3", "--steps=31", "--config.train.log_every=1"
    write = Records.write

    def killed(self, step, values):
        write(self, step, values)
        if self.run.workdir.name == "2-trained" and step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Records, "write", killed)
        with pytest.raises(SystemExit) as stopped:
            cli.main(words(run, tmp_path / "out", *more))
    assert stopped.value.code == 128 + signal.SIGTERM and not steps(tmp_path / "out")
    capsys.readouterr()
    assert cli.main(words(run, tmp_path / "out", *more)) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["rounds"] == _gradual.shares(0.8, 3) and steps(tmp_path / "out")[-1] == 10
    for number, share in enumerate(result["rounds"], 1):
        for folder in (tmp_path / "out" / "rounds" / str(number), *([tmp_path / "out"] if number == 3 else [])):
            found = zeros(folder)
            assert len(found) == 7 and all(abs(part - share) < 2e-3 for part in found.values()), (folder, found)
    assert cli.main(words(run, tmp_path / "at_once")) == 0
    alone = json.loads(capsys.readouterr().out)
    assert result["after"]["bits_per_byte"] < alone["after"]["bits_per_byte"]
    assert result["after"]["parameters"] == alone["after"]["parameters"]
    assert result["before"]["bits_per_byte"] == alone["before"]["bits_per_byte"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--rounds=3",), "--rounds and --steps belong together"),
        (("--rounds=3", "--steps=2"), "2 steps cannot be divided among 3 rounds"),
        (("--rounds=3", "--steps=9", "--step=1"), "--step does not go with --rounds"),
        (("--rounds=3", "--steps=9", "--recipe=int8"), "a recipe whose last step prunes a share, such as wanda:0.5, not 'int8'"),
        (("--rounds=3", "--steps=9", "--recipe=wanda:2:4"), "not 'wanda:2:4'"),
        (("--config.train.lr=1",), "--config.train.lr was fixed by the run"),
    ],
)
def test_bad_arguments_are_one_line(run, tmp_path, capsys, more, message):
    assert cli.main(words(run, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error and not (tmp_path / "out").exists()
