"""Processes killed at any moment, dying workers, a full disk, other meshes: nothing that was saved is lost, and a resumed run
has the same losses as an undisturbed one."""

import collections
import random
import shutil
import socket
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.forks import Forks
from helpers.train_tiny import tiny, write_documents

from jaxseq.train import goodput, prepare, save_params
from jaxseq.train import metrics as records_of
from jaxseq.train.checkpoints import steps
from jaxseq.train.weights import restore_variables

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
    """(the records of an undisturbed run, the seconds from its start to its first step)"""
    folder, began = tmp_path_factory.mktemp("whole"), time.monotonic()
    child = forks.start(TRAIN, config, folder / "log", str(folder / "run"))
    assert child.until("step 1 done")
    early = time.monotonic() - began
    child.finish()
    return numbers(folder / "run"), early


@pytest.mark.parametrize("runs", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_any_moment_a_run_goes_on_with_the_losses_that_it_would_have_had(runs, forks, config, whole, tmp_path):
    """Five kills per run: one at a random moment before the first step, the others a random time after a random step."""
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


def address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def pair(forks, code, config, folder, *args, count=2):
    """Several processes of one run."""
    where = address()
    return [
        forks.start(code, config, folder / f"log {where[-5:]} {i}", *args, world=(where, count, i)) for i in range(count)
    ]  # fmt: skip


@pytest.mark.slow
def test_one_worker_of_two_dies_and_the_pair_is_started_again(forks, config, tmp_path):
    two = changed(config, **{"mesh.data": 2, "train.steps": 10, "train.eval_every": 0})
    for child in pair(forks, TRAIN, two, tmp_path, str(tmp_path / "whole")):
        child.finish()
    first, second = pair(forks, TRAIN, two, tmp_path, str(tmp_path / "run"))
    assert first.until("step 5 done")
    second.kill()
    assert second.wait() == -9
    first.until("never", seconds=200)  # it ends by itself, 100 s after the last heartbeat of the other
    assert first.wait() != 0
    assert steps(tmp_path / "run") and steps(tmp_path / "run")[-1] < 10
    for child in pair(forks, TRAIN, two, tmp_path, str(tmp_path / "run")):
        child.finish()
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole") and len(numbers(tmp_path / "run")) == 10


# Prints a hash of a workdir's state, restored on the mesh of `config`, and saves it into another workdir.
MOVE = """
import hashlib, jax, numpy as np
from jax.experimental import multihost_utils
from jaxseq.train import prepare
from jaxseq.train.checkpoints import Checkpoints
trainer = prepare(config)
with Checkpoints(args[0], 1) as source:
    state, data = source.resume(trainer)
if args[1]:
    with Checkpoints(args[1], 1) as target:
        target.save(state, data, config)
        target.wait()
digest = hashlib.sha256()
for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(trainer.abstract), strict=True):
    assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
    digest.update(np.asarray(multihost_utils.process_allgather(leaf, tiled=True)).tobytes())
print("state", digest.hexdigest(), sum(len(leaf.sharding.device_set) > 1 for leaf in jax.tree.leaves(state)), flush=True)
"""


@pytest.mark.slow
def test_a_state_is_the_same_to_the_bit_on_other_meshes_and_numbers_of_processes(forks, config, tmp_path):
    """1 device, 8, 1, then 2 processes, and 4."""
    short = changed(config, **{"train.steps": 2, "train.eval_every": 0})
    forks.start(TRAIN, short, tmp_path / "log", str(tmp_path / "0")).finish()
    places = [(1, {}, 1), (8, {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}, 1), (1, {}, 1), (1, {"mesh.fsdp": 2}, 2),
              (1, {"mesh.fsdp": 2, "mesh.tensor": 2}, 4)]  # fmt: skip
    found = []
    for number, (devices, mesh, count) in enumerate(places):
        args = str(tmp_path / str(number)), "" if number == len(places) - 1 else str(tmp_path / str(number + 1))
        here = changed(config, **{f"mesh.{axis}": 1 for axis in ("data", "fsdp", "tensor")} | mesh)
        if count == 1:
            children = [forks.start(MOVE, here, tmp_path / f"log {number}", *args, devices=devices)]
        else:
            children = pair(forks, MOVE, here, tmp_path, *args, count=count)
        found += [child.finish().split("state ")[1].split() for child in children]
    assert len(found) == 9 and len({digest for digest, _ in found}) == 1
    assert [int(spread) > 0 for _, spread in found] == [False, True, False, *[True] * 6]


def test_weights_in_another_dtype_are_those_rounded_and_back_the_same(config, tmp_path):
    trainer = prepare(config, jax.devices()[:1])
    kept = trainer.fresh()["params"]
    save_params(tmp_path / "wide", config, kept)
    as_type = lambda dtype: jax.tree.map(  # noqa: E731
        lambda x: jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding), trainer.abstract.params
    )
    narrow = restore_variables(tmp_path / "wide", {"params": as_type(jnp.bfloat16)})["params"]
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y.astype(jnp.bfloat16)), narrow, kept)
    save_params(tmp_path / "narrow", config, narrow)
    back = restore_variables(tmp_path / "narrow", {"params": as_type(jnp.float32)})["params"]
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y.astype(jnp.float32)), back, narrow)


# Trains on a separate file system, which becomes full while the checkpoint of step 6 is written, then before a record.
FULL = """
import ctypes, errno, os, shutil, sys
from jaxseq.train import train
from jaxseq.train.checkpoints import Checkpoints, steps
workdir, folder = args
libc = ctypes.CDLL(None, use_errno=True)
user = 0x10000000 if os.geteuid() else 0
alone = libc.unshare(0x20000 | user) == 0 and libc.mount(b"none", b"/", None, 0x44000, None) == 0
if not alone or libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, b"size=4m"):
    print("no file system:", os.strerror(ctypes.get_errno()), flush=True)
    os._exit(0)
save, left = Checkpoints.save, None

def fill(free):
    with open(f"{folder}/ballast", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(folder).free - free))

def saved(self, state, data, config):
    if int(state.step) == 6 and left is not None:
        self.wait()
        fill(sum(x.nbytes for x in __import__("jax").tree.leaves((state.variables, state.optimizer))) + left)
    save(self, state, data, config)

def written(record):
    if record["step"] == 5 and left is None:
        fill(0)

Checkpoints.save = saved
for left in (0, 8192, 40960, None):
    try:
        train(config, workdir, progress=written)
        print("it went on")
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        print("full", steps(workdir), flush=True)
    os.remove(f"{folder}/ballast")
train(config, workdir)
shutil.copy(f"{workdir}/metrics.jsonl", f"{folder}/../metrics.jsonl")
print("through", flush=True)
"""


def test_a_disk_that_fills_loses_nothing_that_was_saved(forks, config, whole, tmp_path):
    """On a tmpfs of 4 MB in the process's mount namespace, which root and, on most systems, any user can create."""
    (tmp_path / "disk").mkdir()
    said = forks.start(FULL, config, tmp_path / "log", str(tmp_path / "disk" / "run"), str(tmp_path / "disk")).finish()
    if "no file system" in said:
        pytest.skip(said.strip())
    assert said.count("full [2, 4]") >= 3 and said.count("full") == 4 and "through" in said, said
    assert numbers(tmp_path) == whole[0]
