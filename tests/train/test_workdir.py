"""The folder of a run: errors before step 1, locks, resumption, and messages."""

import json
import logging
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers.train_tiny import tiny, write_documents

from jaxseq import data
from jaxseq.errors import UserError
from jaxseq.train import load, optimizer, planned, save_params, train
from jaxseq.train import metrics as records_of
from jaxseq.train.checkpoints import Checkpoints, steps
from jaxseq.train.locks import claimed
from jaxseq.train.metrics import MetricsWriter
from jaxseq.train.objectives import _task, next_token
from jaxseq.train.run import Run
from jaxseq.train.workdirs import write_config


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    return write_documents(tmp_path_factory.mktemp("documents"))


@pytest.fixture
def run(documents, tmp_path):
    """Trains in tmp_path / "run" on one device: run(steps, stop=…, **{"train.lr": …})."""

    def go(count, stop=None, progress=None, **overrides):
        plain = {"train.schedule": "constant", "train.warmup": 0, "train.steps": count, "train.checkpoint_every": 0}
        config = tiny(documents, **plain | overrides)
        return train(config, tmp_path / "run", devices=jax.devices()[:1], stop=stop, progress=progress)

    return go


@pytest.mark.parametrize("name", ["a[b]", "a*b", "a?", "back\\slash", "bad\udcff", "nul\0", "gs://bucket", "gs:/b/run", "s3://b/run"])
def test_a_path_that_could_not_be_read_back_is_refused(documents, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for use in (train, planned):
        with pytest.raises(UserError, match="workdir="):
            use(tiny(documents), name)
    with pytest.raises(UserError, match="workdir="):
        load(name)
    with pytest.raises(UserError, match="workdir="):
        save_params(name, tiny(documents), {"a": np.zeros(1)})
    assert not [path for path in tmp_path.rglob("*") if documents not in (path, *path.parents)]


def test_steps_are_found_by_name_without_waiting_for_other_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxseq.train.checkpoints.manager", lambda *args, **more: pytest.fail("a manager waits for all"))
    assert steps(tmp_path) == []
    for name in ("2", "10", "3.damaged", "4.orbax-checkpoint-tmp", "x"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "7").touch()
    assert steps(tmp_path) == [2, 10]


HOLD = """
import fcntl, os, sys, time
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX)
os.write(lock, b"process 4 on elsewhere since noon")
print("held", flush=True)
time.sleep(600)
"""


def test_a_workdir_has_one_training_at_a_time_and_a_dead_one_does_not_count(run, tmp_path):
    run(1)
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with claimed(tmp_path / "run"), pytest.raises(UserError, match=rf"process {os.getpid()} on \S+ since"):
        run(2)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run" / ".lock"], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="process 4 on elsewhere since noon"):
        run(2)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    assert (tmp_path / "run" / ".lock").exists()
    assert run(2)["step"] == 2
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"train.init": "nowhere"}, "nowhere"),
        ({"data.path": "nowhere"}, "nowhere"),
        ({"eval.batch": 0}, "eval.batch"),
        ({"eval.documents": -1}, "eval.documents"),
        ({"eval.tokens": -1}, "eval.tokens"),
        ({"train.logger": "wand"}, "wandb"),
        ({"train.decay_steps": 0}, "train.decay_steps"),
    ],
)
def test_a_run_that_is_refused_leaves_nothing_behind(run, tmp_path, option, words):
    with pytest.raises(UserError, match=words):
        run(2, **option)
    assert not (tmp_path / "run").exists()


def test_stopped_between_pieces_of_the_last_evaluation_it_is_saved_and_judged_later(run, tmp_path, monkeypatch):
    """The weights are on disk before; a run that is finished and evaluated is neither loaded nor evaluated again."""
    record = run(2, stop=(tmp_path / "run" / "checkpoints" / "2").exists)
    assert "in the evaluation after step 2" in record["stopped"] and record["signal"] == 0
    assert steps(tmp_path / "run") == [2]
    assert not any(name.startswith("validation") for name in records_of.read(tmp_path / "run")[-1])
    judged = run(2)
    assert judged == records_of.read(tmp_path / "run")[-1] and judged["validation_bits_per_byte"] > 0
    assert [row["step"] for row in records_of.read(tmp_path / "run")] == [1, 2]
    for owner, method in ((_task.TextTask, "corpus"), (Checkpoints, "resume")):
        monkeypatch.setattr(owner, method, property(lambda self: pytest.fail("a finished run opens its data or weights")))
    assert run(2) == judged


def test_an_evaluation_on_the_way_can_be_stopped_too(run, tmp_path):
    asked = []
    record = run(4, stop=lambda: len(records_of.read(tmp_path / "run")) == 2 and not asked.append(1), **{"train.eval_every": 2})
    assert record["step"] == 2 and "after step 2, which is saved" in record["stopped"] and len(asked) == 1
    run(4, **{"train.eval_every": 2})
    assert ["validation_perplexity" in row for row in records_of.read(tmp_path / "run")] == [False, True, False, True]


def test_another_listener_hears_signals_only_in_an_evaluation_that_follows_a_save(run, monkeypatch):
    """The command line's listener ends the process if Python does not react, because it is compiling."""
    reader, listener = os.pipe()
    os.set_blocking(listener, False)
    heard, plain = [], next_token.NextToken.evaluate

    def evaluate(*args, **kwargs):
        heard.append(signal.set_wakeup_fd(-1))
        signal.set_wakeup_fd(heard[-1])
        return plain(*args, **kwargs)

    monkeypatch.setattr(next_token.NextToken, "evaluate", evaluate)
    before = signal.set_wakeup_fd(listener)
    try:
        run(4, **{"train.eval_every": 2})
        assert heard == [-1, listener] and signal.set_wakeup_fd(before) == listener
    finally:
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(listener)


def test_it_says_the_step_at_which_it_is_stopped_and_goes_on_there(run, tmp_path):
    told, asked = [], iter(range(99))
    record = run(9, stop=lambda: next(asked) == 4, progress=told.append, **{"train.log_every": 100})
    assert record["step"] == told[-1]["step"] == steps(tmp_path / "run")[-1] == 4
    assert record["loss"] > 0 and "after step 4" in record["stopped"]
    assert [row["step"] for row in records_of.read(tmp_path / "run")] == [1], "where it happens to stop leaves no trace"


def test_stopped_before_the_first_step_it_does_not_claim_to_have_saved(run, tmp_path):
    record = run(2, stop=lambda: True)
    assert record["step"] == 0 and "nothing new to save" in record["stopped"]
    assert steps(tmp_path / "run") == []


def test_a_longer_run_whose_learning_rate_jumps_says_so_and_can_go_on_with_it(documents, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("jaxseq"), "propagate", True)
    cosine = {"train.schedule": "cosine", "train.warmup": 0, "train.lr": 0.01}
    write_config(tmp_path, tiny(documents, **cosine | {"train.steps": 2}))
    longer, held = (tiny(documents, **cosine | {"train.steps": 8, "train.decay_steps": span}) for span in (None, 2))
    Run(held, tmp_path, jax.devices()[:1]).compare_rates(2)
    assert "learning rate" not in caplog.text
    assert [float(optimizer.schedule(held.train)(step)) for step in (1, 2, 7)] == [pytest.approx(0.001)] * 3
    Run(longer, tmp_path, jax.devices()[:1]).compare_rates(3)
    assert "the learning rate jumps from 0.001 to 0.0055 at step 3" in caplog.text
    assert "--config.train.decay_steps=2 keeps it at 0.001" in caplog.text


def test_lines_of_the_metrics_that_are_no_record_do_not_keep_a_run_from_going_on(run, tmp_path):
    run(2)
    path = tmp_path / "run" / "metrics.jsonl"
    rows = path.read_text().splitlines()
    none = b'\n\0\0\0\n[1]\n{}\n{"step": "x"}\n\xff\xfe\n'
    path.write_bytes(b"\n" + rows[0].encode() + none + rows[1].encode() + b'\n{"step": 9')
    assert [row["step"] for row in records_of.read(tmp_path / "run")] == [1, 2]
    run(3)
    assert path.read_text().splitlines()[:2] == rows
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_an_evaluation_in_training_is_a_sample_of_the_split(documents):
    corpus = _task.TextTask(tiny(documents, **{"data.validation_every": 2})).corpus
    lengths = corpus.validation.lengths
    some = _task.sample(corpus.validation, int(lengths.sum()) // 3)
    assert 0.5 * lengths.sum() / 3 < some.lengths.sum() <= lengths.sum() / 3
    assert len(some) < len(corpus.validation) and some.positions[-1] > corpus.validation.positions[len(lengths) // 2]
    assert _task.sample(corpus.validation, 0) is _task.sample(corpus.validation, 1_000_000) is corpus.validation
    assert len(_task.sample(corpus.validation, 1)) == 1
    own = data.Documents(corpus.validation.store, corpus.validation.positions, boundary=7, start=5)
    begun = _task.sample(own, int(lengths.sum()) // 3)
    assert (begun.start, begun.boundary) == (5, 7) and all(document[0] == 5 for document in begun), "as training begins them"


def test_tensorboard_gets_groups_and_the_config(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    writer = MetricsWriter(tmp_path, 0, records_of.described({"train.lr": 0.1, "data.path": None}, ["loss", "validation_loss"]))
    writer.write({"step": 1, "loss": 2.0})
    assert writer.add(1, {"validation_loss": 3.0}) == {"step": 1, "loss": 2.0, "validation_loss": 3.0}
    writer.close()
    data, events = next(tmp_path.glob("events.out.tfevents*")).read_bytes(), []
    while data:  # length, its checksum, the event, its checksum
        size = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    values = [value for event in events for value in event.summary.value]
    tags = {value.tag: value for value in values}
    assert {"train/loss", "validation/loss", "config/text_summary", "_hparams_/session_start_info"} <= tags.keys()
    assert "| train.lr | 0.1 |" in tags["config/text_summary"].tensor.string_val[0].decode()
    assert b"validation/loss" in tags["_hparams_/experiment"].metadata.plugin_data.content
