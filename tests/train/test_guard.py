"""Bad steps: skipped and counted, rewound, or the end of the run; the same after a kill."""

import logging
import math
import shutil

import jax
import numpy as np
import pytest
from helpers.train_tiny import tiny, write_documents

from jaxseq.data.batching import RowBatches
from jaxseq.errors import UserError
from jaxseq.train import BadStepError, NonFiniteError, guard, load, train
from jaxseq.train import metrics as records_of
from jaxseq.train.checkpoints import steps
from jaxseq.train.guard import Guard, Verdict


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    return write_documents(tmp_path_factory.mktemp("documents"))


@pytest.fixture
def run(documents, tmp_path):
    """Trains on one device: run("name", steps, stop=…, **{"train.skip": …})."""

    def go(name, count, stop=None, **overrides):
        plain = {"train.schedule": "constant", "train.warmup": 0, "train.steps": count, "train.checkpoint_every": 4,
                 "train.keep": 9, "data.validation_every": 0, "data.prefetch": 0, "model.width": 16}  # fmt: skip
        return train(tiny(documents, **plain | overrides), tmp_path / name, devices=jax.devices()[:1], stop=stop)

    return go


@pytest.fixture
def batches(monkeypatch):
    """({number of a batch: factor of its tokens' weights}, the numbers of the batches that were used)"""
    factors, seen, plain = {}, [], RowBatches.__next__

    def poison(self):
        batch = plain(self)
        seen.append(self.row // 8)
        return batch | {"weights": batch["weights"] * np.float32(factors.get(self.row // 8, 1))}

    monkeypatch.setattr(RowBatches, "__next__", poison)
    return factors, seen


@pytest.fixture
def told(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("jaxseq"), "propagate", True)
    return caplog


def losses(workdir):
    return {row["step"]: row.get("loss") for row in records_of.read(workdir)}


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_a_bad_step_is_passed_over_and_counted_and_one_too_many_is_the_end(run, batches, tmp_path, told):
    batches[0].update({3: math.nan, 6: math.inf})
    plain = {"train.schedule": "linear", "train.decay_steps": 9}
    with pytest.raises(NonFiniteError, match="not finite at step 6: .*the checkpoint of step 4 is kept"):
        run("one", 8, **plain, **{"train.skip": 1})
    record = run("one", 8, **plain, **{"train.skip": 2})  # the ended run continues if more skips are allowed
    assert record["skipped"] == 2 and "step 6 is skipped: not finite (the loss is nan" in told.text
    assert "2 of train.skip=2" in told.text
    found = losses(tmp_path / "one")
    assert list(found) == list(range(1, 9)) and [step for step, loss in found.items() if loss is None] == [3, 6]
    assert all("skipped" not in row for row in records_of.read(tmp_path / "one")[:2])

    run("two", 8, **plain, **{"train.skip": 9, "train.checkpoint_every": 1})
    assert losses(tmp_path / "two") == found
    weights = {step: load(tmp_path / "two", step)[1] for step in steps(tmp_path / "two")}
    assert same(load(tmp_path / "one")[1], weights[8])
    assert [step for step in range(2, 9) if same(weights[step - 1], weights[step])] == [3, 6]
    rates = [row["learning_rate"] for row in records_of.read(tmp_path / "two")]
    assert rates[1] > rates[2] == rates[3] > rates[4], "the schedule counts updates"


def test_a_gradient_that_is_too_long_is_a_bad_step(run):
    with pytest.raises(BadStepError, match="step 1: the gradient's norm of .* is above train.skip_norm=0.001; there is no check"):
        run("end", 3, **{"train.skip_norm": 1e-3})


def test_a_run_goes_back_past_bad_data_and_does_so_again_after_a_kill(run, batches, tmp_path, told):
    batches[0].update({6: math.nan, 9: math.nan})
    back = {"train.rewind": 2}
    record = run("twice", 8, **back)
    assert record["rewound"] == 2 and record["time_lost"] > 0
    assert "step 6: not finite" in told.text and "back to step 4, continuing with later data (1 of" in told.text
    assert list(losses(tmp_path / "twice")) == list(range(1, 9))
    # A step is recorded after the next one is dispatched: steps 5 to 7, then 5 to 8 with batches from 7 on, then from 10 on.
    assert batches[1] == [*range(1, 8), 7, 8, 9, 10, 10, 11, 12, 13]
    asked = iter(range(99))  # stopped after the second rewind, before there is another checkpoint
    run("stopped", 8, stop=lambda: next(asked) >= 12, **back)
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / str(steps(tmp_path / "stopped")[-1]))  # as if it had been killed
    assert steps(tmp_path / "stopped") == [4]
    run("stopped", 8, **back)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "twice")
    assert same(load(tmp_path / "stopped")[1], load(tmp_path / "twice")[1])


def test_before_the_first_checkpoint_it_begins_anew_with_other_data(run, batches, tmp_path):
    batches[0].update({2: math.nan})
    run("bad", 3, **{"train.rewind": 1})
    assert list(losses(tmp_path / "bad")) == [1, 2, 3] and steps(tmp_path / "bad") == [3]


def test_spikes(run, tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "FEWEST", 3)
    values = iter([1.0, 1.0, 1.0, 1.0, 1.0, 9.0, *[1.0] * 99])
    judge = Guard.judge
    monkeypatch.setattr(Guard, "judge", lambda self, good, loss: judge(self, good, next(values)))
    assert run("spike", 8, **{"train.rewind": 1, "train.spike": 3})["rewound"] == 1
    assert steps(tmp_path / "spike") == [4, 8]


def test_the_guard():
    train = tiny("x", **{"train.skip": 1, "train.rewind": 1, "train.spike": 2}).train
    one = Guard(train)
    assert [one.judge(True, loss) for loss in [1.0] * 15 + [50.0]] == [Verdict.GOOD] * 16, "too few to judge by"
    assert not one.spikes(2.0) and one.spikes(2.1)
    held = one.state()
    assert one.judge(False, math.nan) is Verdict.SKIPPED and one.judge(True, 3.0) is Verdict.REWIND
    assert one.judge(True, 3.0) is one.judge(False, math.nan) is Verdict.END
    values = {"loss": 3.0, "grad_norm": 1.0, "update_norm": 1.0, "learning_rate": 1.0}
    assert one.reason(values).startswith("the loss of 3 is a spike, 3 times")
    assert one.reason(values | {"learning_rate": math.inf}).startswith("not finite")
    assert one.figures() == {"skipped": 1, "rewound": 1}
    one.restore(held)
    assert one.figures() == {"rewound": 1}, "rewinds stay counted"
    two = Guard(train)
    two.restore(held)
    assert two.state() == held and Guard(train).figures() == {}
    two.restore(None)  # a checkpoint of an earlier version
    assert two.state() == {"losses": [], "skipped": 0, "rewound": 0}
    with pytest.raises(UserError, match="train.spike"):
        tiny("x", **{"train.spike": -1})
