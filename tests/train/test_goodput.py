"""Goodput in the records and the last line of a run; traces of selected steps."""

import time

import jax
import pytest
from helpers.train_tiny import tiny, write_documents

from jaxseq.errors import UserError
from jaxseq.train import goodput, profiles, train
from jaxseq.train import metrics as records_of
from jaxseq.train.goodput import KINDS, Goodput


def test_time_goes_to_one_kind_at_a_time(monkeypatch):
    clock = iter([0, 1, 3, 6, 10, 15, 21])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    one = Goodput()
    with one.spent("evaluation"), one.spent("data"):  # start: 0 to 1, evaluation: 1 to 3
        pass  # data: 3 to 6
    one.turn("training")  # evaluation: 6 to 10, start: 10 to 15
    one.resume({"time_training": 9.0, "time_compile": 2.0}, {"time_training": 6.0})
    found = one.figures()  # training: 15 to 21
    assert {kind: found[f"time_{kind}"] for kind in KINDS} == {
        "training": 6 + 6, "start": 1 + 5, "compile": 2, "data": 3, "checkpoint": 0, "evaluation": 2 + 4, "lost": 3,
    }  # fmt: skip
    assert found["goodput"] == 12 / 32
    assert goodput.describe(found) == "time: 32 s, 38% of it training; start 19%, evaluation 19%, data 9%, lost 9%, compile 6%"


def test_the_steps_of_a_profile():
    assert profiles.steps("10-12") == range(10, 13) and profiles.steps("7") == range(7, 8)
    for text in ("", "0", "3-2", "a", "1-", "-1", "1-2-3", "9" * 20):
        with pytest.raises(UserError, match="such as 10-12"):
            profiles.steps(text)


def test_a_run_tells_where_its_time_went_over_all_its_processes_and_traces_steps(tmp_path):
    plain = {"train.checkpoint_every": 2, "train.schedule": "constant", "train.warmup": 0, "model.width": 16}
    config = lambda steps: tiny(write_documents(tmp_path / "texts"), **plain, **{"train.steps": steps})  # noqa: E731
    one = jax.devices()[:1]
    with pytest.raises(UserError, match="--profile=3-4 ends after the last step"):
        train(config(3), tmp_path / "run", devices=one, profile=range(3, 5))
    assert not (tmp_path / "run").exists()
    began = time.perf_counter()
    first = train(config(3), tmp_path / "run", devices=one, profile=range(2, 4))
    took = time.perf_counter() - began
    parts = [first[f"time_{kind}"] for kind in KINDS]
    assert 0.9 * took < sum(parts) <= took and first["goodput"] == parts[0] / sum(parts)
    assert min(first[f"time_{kind}"] for kind in KINDS if kind != "lost") > 0 == first["time_lost"]
    assert records_of.read(tmp_path / "run")[-1]["time_evaluation"] > 0, "the last record has the evaluation of it"
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    second = train(config(5), tmp_path / "run", devices=one)
    assert all(second[f"time_{kind}"] >= first[f"time_{kind}"] for kind in KINDS)
