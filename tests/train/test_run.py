"""Whole runs: stopped, with bad steps, on a full disk, started from weights, refused."""

import errno
import json
import os
import signal

import jax
import numpy as np
import pytest
from helpers.train_tiny import finish, launch, tiny, write_documents

from jaxseq.errors import UserError
from jaxseq.train import NonFiniteError, goodput, load, train
from jaxseq.train import metrics as records_of
from jaxseq.train.checkpoints import Checkpoints, steps
from jaxseq.train.metrics import MetricsWriter

STEPS = 8
# Values that depend on the clock or the machine; all others must be bitwise equal.
TIMES = {"tokens_per_second", "flops_utilisation", "hardware_flops_utilisation", "memory_bytes", "goodput",
         *(f"time_{kind}" for kind in goodput.KINDS)}  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    documents = write_documents(tmp_path_factory.mktemp("documents"))
    # A constant rate: runs of different lengths share one program.
    return tiny(documents, **{"train.steps": STEPS, "train.eval_every": 4, "train.schedule": "constant"})


def changed(config, **overrides):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(overrides)
    return config


def numbers(workdir):
    return [{key: value for key, value in row.items() if key not in TIMES} for row in records_of.read(workdir)]


def step_of(process):
    return int(process.stdout.readline())


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The workdir of an undisturbed run, and its last record."""
    workdir = tmp_path_factory.mktemp("whole")
    finish(launch(config, workdir))
    return workdir


def test_sigterm_saves_and_ends_well(config, whole, tmp_path):
    process = launch(changed(config, **{"train.checkpoint_every": 0}), tmp_path)
    while step_of(process) < 3:
        pass
    process.send_signal(signal.SIGTERM)
    finish(process)
    (saved,) = steps(tmp_path)
    assert 3 <= saved < STEPS
    finish(launch(config, tmp_path))
    assert numbers(tmp_path) == numbers(whole)


def test_the_record_of_a_run(config, whole):
    rows = records_of.read(whole)
    wanted = {"step", "loss", "bits_per_byte", "tokens_per_second", "flops_per_token", "flops_utilisation", "grad_norm",
              "hardware_flops_per_token", "hardware_flops_utilisation", "learning_rate", "memory_bytes", "accuracy"}  # fmt: skip
    assert all(wanted <= row.keys() for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert json.loads((whole / "config.json").read_text())["train"]["steps"] == STEPS
    assert steps(whole) == [6, 8]
    assert list(whole.glob("events.out.tfevents*"))


def test_load_gives_the_weights_that_were_saved(whole):
    model, params, config = load(whole)
    older = load(whole, step=6)[1]
    assert model.vocab == 257 and config.train.steps == STEPS
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(older), strict=True))
    with pytest.raises(UserError, match="choose one of 6, 8"):
        load(whole, step=7)
    with pytest.raises(UserError, match="config.json"):
        load(whole / "checkpoints")


def test_a_finished_run_has_nothing_left_to_do(config, whole):
    before = (whole / "metrics.jsonl").read_text()
    record = train(config, whole, devices=jax.devices()[:1])
    assert (whole / "metrics.jsonl").read_text() == before
    np.testing.assert_allclose(
        record["validation_bits_per_byte"], json.loads(before.splitlines()[-1])["validation_bits_per_byte"], rtol=1e-4
    )


def test_a_workdir_of_another_config_is_refused(config, whole):
    with pytest.raises(UserError, match=r"differing: train\.lr, train\.seed\)"):
        train(changed(config, **{"train.lr": 0.5, "train.seed": 3, "train.log_every": 5}), whole)
    assert json.loads((whole / "config.json").read_text())["train"]["log_every"] == 1


def test_starting_from_weights(config, whole, tmp_path):
    fresh = train(changed(config, **{"train.init": str(whole), "train.steps": 2}), tmp_path / "a", devices=jax.devices()[:1])
    first = records_of.read(tmp_path / "a")[0]
    assert fresh["step"] == 2
    assert first["loss"] < records_of.read(whole)[1]["loss"]
    with pytest.raises(UserError, match=r"norm_swiglu/scale is \(1, 32\), expected \(1, 40\)"):
        train(changed(config, **{"train.init": str(whole), "model.width": 40}), tmp_path / "b")
    with pytest.raises(UserError, match="holds no checkpoint"):
        train(changed(config, **{"train.init": str(tmp_path / "b")}), tmp_path / "c")


def test_numbers_gone_bad_stop_the_run_and_keep_the_last_checkpoint(config, tmp_path):
    train(changed(config, **{"train.steps": 2}), tmp_path, devices=jax.devices()[:1])
    kept = steps(tmp_path)
    broken = changed(config, **{"train.lr": 1e16, "train.clip": 0.0, "train.init": str(tmp_path)})
    with pytest.raises(NonFiniteError, match=r"not finite at step 2: .*(parameter|gradient|loss).*no checkpoint yet"):
        train(broken, tmp_path / "broken", devices=jax.devices()[:1])
    assert kept == steps(tmp_path) == [2]
    assert [row["step"] for row in records_of.read(tmp_path / "broken")] == [1]


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("owner", "method"), [(MetricsWriter, "write"), (Checkpoints, "save")])
def test_a_full_disk_loses_nothing_that_was_written(config, whole, tmp_path, monkeypatch, owner, method):
    train(changed(config, **{"train.steps": 3}), tmp_path, devices=jax.devices()[:1])
    before = numbers(tmp_path)
    monkeypatch.setattr(owner, method, full)
    with pytest.raises(OSError) as caught:
        train(config, tmp_path, devices=jax.devices()[:1])
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert steps(tmp_path) == [3]
    assert numbers(tmp_path)[: len(before)] == before


def test_tensorboard_shows_a_path_that_is_not_utf8():
    config, *_ = records_of.described({"data.path": "caf\udce9.txt"}, ["loss"])
    assert config.value[0].tensor.string_val == [b"| field | value |\n| --- | --- |\n| data.path | caf\\udce9.txt |"]
