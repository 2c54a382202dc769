"""Processes that are killed at any moment: nothing that was saved is lost, and a run that goes on has the losses that it would
have had."""

import collections
import random
import shutil
import time

import pytest
from helpers.forks import Forks
from helpers.train_tiny import tiny, write_documents

from jaxseq.train import goodput
from jaxseq.train import metrics as records_of
from jaxseq.train.checkpoints import steps

STEPS = 24
TIMES = {"tokens_per_second", "flops_utilisation", "hardware_flops_utilisation", "memory_bytes", "goodput",
         *(f"time_{kind}" for kind in goodput.KINDS)}  # fmt: skip
TRAIN = """
from jaxseq.train import train
train(config, args[0], progress=lambda record: print("step", record["step"], "done", flush=True))
"""


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    with Forks(tmp_path_factory.mktemp("programs")) as forks:
        yield forks


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    more = {"train.checkpoint_every": 2, "train.eval_every": 8, "train.schedule": "constant", "model.width": 16}
    return tiny(write_documents(tmp_path_factory.mktemp("documents")), **more, **{"train.steps": STEPS})


def changed(config, **overrides):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(overrides)
    return config


def numbers(workdir):
    return [{key: value for key, value in row.items() if key not in TIMES} for row in records_of.read(workdir)]


@pytest.fixture(scope="module")
def whole(forks, config, tmp_path_factory):
    """(the records of a run that nothing happened to, the seconds from its start to its first step)"""
    folder, began = tmp_path_factory.mktemp("whole"), time.monotonic()
    child = forks.start(TRAIN, config, folder / "log", str(folder / "run"))
    assert child.until("step 1 done")
    early = time.monotonic() - began
    child.finish()
    return numbers(folder / "run"), early


@pytest.mark.parametrize("runs", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_any_moment_a_run_goes_on_with_the_losses_that_it_would_have_had(runs, forks, config, whole, tmp_path):
    """Five kills a run: one at a random moment before the first step, the others a random time behind a random step."""
    found, chance = collections.Counter(), random.Random(runs)
    for number in range(runs):
        workdir = tmp_path / str(number)
        every = changed(config, **{"train.checkpoint_every": chance.choice([1, 2, 3, 5])})
        for kill in range(5):
            child = forks.start(TRAIN, every, tmp_path / f"log {number} {kill}", str(workdir))
            if kill == 0:
                time.sleep(chance.uniform(0, whole[1]))
            elif child.until(f"step {chance.randint(4 * kill, 4 * kill + 6)} done"):
                time.sleep(chance.choice([0, chance.uniform(0, 0.03)]))
            if child.ended():
                found["ended before it was killed"] += 1
            child.kill()
            child.wait()
            half = list((workdir / "checkpoints").glob("*tmp*"))
            found["while a checkpoint was written" if half else "before step 1" if not kill else "elsewhere"] += 1
        forks.start(TRAIN, every, tmp_path / f"log {number}", str(workdir)).finish()
        assert numbers(workdir) == whole[0], f"run {number}"
        assert steps(workdir)[-1] == STEPS and not list((workdir / "checkpoints").glob("*tmp*"))
        shutil.rmtree(workdir)
    assert sum(found.values()) - found["ended before it was killed"] == 5 * runs
    print(dict(found))
