"""The command: its stages, its report, going on after an interruption, and errors. And what it is for: a migrated model is better
than the same model from random weights."""

import json
import os
import signal

import jax
import pytest
from helpers.train_tiny import trained

import jaxseq
from jaxseq import cli
from jaxseq.config import from_dict, to_dict
from jaxseq.train import load, train
from jaxseq.train.checkpoints import steps
from jaxseq.train.records import Records


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The workdir of a small trained Transformer."""
    return trained(tmp_path_factory.mktemp("teacher"), tmp_path_factory.mktemp("documents"))


def words(teacher, out, *more: str) -> list[str]:
    return ["migrate", f"--workdir={teacher}", f"--out={out}", *more]


def test_one_stage_and_the_report(teacher, tmp_path, capsys):
    assert cli.main(words(teacher, tmp_path / "out", "--to=window:8", "--steps=0,0,2", "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["stack"] == "2*(attention:window swiglu)"
    assert [stage["stage"] for stage in result["stages"]] == ["start", "distillation"]
    assert result["after"]["state_bytes"] < result["before"]["state_bytes"] and steps(tmp_path / "out") == [2]


@pytest.mark.slow
def test_the_stages_and_the_report(teacher, tmp_path, capsys):
    command = words(teacher, tmp_path / "out", "--to=gla,window:8", "--steps=8,0,6", "--context=64", "--json")
    assert cli.main(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["stack"] == "1*(gla swiglu attention:window swiglu)"
    assert [stage["stage"] for stage in result["stages"]] == ["start", "matching", "distillation"]
    assert [stage["tokens"] for stage in result["stages"]] == [0, 8 * 8 * 32, 6 * 8 * 32]
    bits = [stage["bits_per_byte"] for stage in result["stages"]]
    assert bits[0] > bits[1] > bits[2] > result["before"]["bits_per_byte"]
    assert bits[2] == pytest.approx(result["after"]["bits_per_byte"])
    assert 0 < result["recovered"] < 1 and result["seconds"] > 0 and result["context"] == 64
    assert result["after"]["state_bytes"] < result["before"]["state_bytes"]
    assert min(result[side]["tokens_per_second"] for side in ("before", "after")) > 0
    assert cli.main(["generate", f"--workdir={tmp_path / 'out'}", "--prompt=the state", "--max_tokens=4"]) == 0
    assert cli.main(command) == 0  # again: nothing is trained
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["stages"] == result["stages"]


@pytest.mark.slow
def test_an_interrupted_migration_goes_on(teacher, tmp_path, capsys, monkeypatch):
    more = "--to=retention", "--steps=3,4,3", "--config.train.log_every=1"
    write = Records.write

    def killed(self, step, values):
        write(self, step, values)
        if self.run.config.train.objective == "hidden_states" and step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Records, "write", killed)
        with pytest.raises(SystemExit) as stopped:
            cli.main(words(teacher, tmp_path / "out", *more))
    assert stopped.value.code == 128 + signal.SIGTERM and "run the same command again to resume" in capsys.readouterr().err
    assert steps(tmp_path / "out" / "stages" / "hidden_states") in ([2], [3]) and not steps(tmp_path / "out")
    for name in ("whole", "out"):
        assert cli.main(words(teacher, tmp_path / name, *more)) == 0
    found = [load(tmp_path / name)[1] for name in ("whole", "out")]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), *found))
    assert cli.main(words(teacher, tmp_path / "out", "--to=gla")) == 2
    assert "was begun with to retention" in capsys.readouterr().err


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """The workdir of a Transformer that has read 0.6 million tokens of English."""
    folder = tmp_path_factory.mktemp("reader")
    sizes = {"model.width": 64, "model.stack": "4*(attention swiglu)", "train.batch": 8, "train.length": 64}
    more = {"train.steps": 1200, "train.warmup": 50, "train.lr": 3e-3, "train.log_every": 400, "train.checkpoint_every": 0}
    train(jaxseq.config("transformer", **sizes | more | {"eval.tokens": 20_000}), folder, devices=jax.devices()[:1])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "counts"),
    [("retention", (160, 320)), ("rwkv6", (160, 320)), ("gla,window:16", (160, 320)), ("mamba2", (160, 200))],
)
def test_a_migrated_model_is_better_than_the_same_from_random_weights(reader, tmp_path, to, counts, capsys):
    """At equally many tokens, and at equally much time: a step with a teacher takes less than twice as long as one without. For
    Mamba-2, equally many operations."""
    assert cli.main(words(reader, tmp_path / "out", f"--to={to}", "--steps=40,40,80", "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    alone = {"train.objective": "next_token", "train.init": None, "train.distill_teacher": None}
    for count in counts:
        config = from_dict(to_dict(load(tmp_path / "out")[2]), **alone, **{"train.steps": count, "train.warmup": 16})
        record = train(config, tmp_path / f"{count}", devices=jax.devices()[:1])
        assert result["after"]["bits_per_byte"] < record["validation_bits_per_byte"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--to=linear",), "attention cannot become 'linear'"),
        (("--to=gla", "--steps=1,2"), "the steps 1,2 must be 3 numbers"),
        (("--to=gla", "--steps=1,-2,3"), "--steps=1,-2,3 must be three numbers"),
        (("--to=gla", "--context=1"), "--context=1 is too short"),
        (("--to=gla", "--config.train.steps=3"), "--config.train.steps is set by migrate"),
        (("--to=gla", "--config.model.width=3"), "--config.model.width is set by migrate"),
    ],
)
def test_bad_arguments_are_one_line(teacher, tmp_path, capsys, more, message):
    assert cli.main(words(teacher, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error and not (tmp_path / "out").exists()
