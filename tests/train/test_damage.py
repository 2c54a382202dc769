"""Checkpoints damaged on disk: reported, skipped and renamed; damaged ones are never used, intact ones are never lost."""

import json
import random
import shutil

import jax
import numpy as np
import pytest
from helpers.train_tiny import tiny, write_documents

from jaxseq.errors import UserError
from jaxseq.train import digests, load, prepare, train
from jaxseq.train.checkpoints import Checkpoints, steps


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    documents = write_documents(tmp_path_factory.mktemp("documents"))
    plain = {"train.schedule": "constant", "train.warmup": 0, "train.steps": 2, "train.checkpoint_every": 1}
    return tiny(documents, **plain | {"model.width": 16, "eval.documents": 1})


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """(a workdir with checkpoints 1 and 2, the weights of both)"""
    workdir = tmp_path_factory.mktemp("damage") / "run"
    train(config, workdir, devices=jax.devices()[:1])
    return workdir, {step: jax.device_get(load(workdir, step)[1]) for step in (1, 2)}


def damage(chance: random.Random, folder) -> str:
    """Damages a file below `folder`: flips a bit, truncates it, fills it with zeros or removes it. Returns a description."""
    files = json.loads((folder / digests.NAME).read_text())["sha256"]
    path, kind = folder / chance.choice(sorted(files)), chance.choice(["flip", "cut", "zero", "remove"])
    content = bytearray(path.read_bytes())
    if kind == "flip":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del content[chance.randrange(len(content)) :]
    elif kind == "zero":
        content[:] = bytes(len(content))
    path.unlink() if kind == "remove" else path.write_bytes(content)
    return f"{kind} {path.relative_to(folder)}"


def same(found, wanted) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True))


def resumed(config, workdir):
    with Checkpoints(workdir, 2) as checkpoints:
        return checkpoints.resume(prepare(config, jax.devices()[:1]))[0]


@pytest.mark.parametrize("count", [15, pytest.param(120, marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_is_never_read_and_the_one_before_it_is(config, whole, tmp_path, count):
    workdir, weights = whole
    for number in range(count):
        copy = shutil.copytree(workdir, tmp_path / str(number))
        what = damage(random.Random(number), copy / "checkpoints" / "2")
        assert same(load(copy)[1], weights[1]), what
        with pytest.raises(UserError, match=r"has no intact checkpoint \(step 2: .*try --step=1"):
            load(copy, step=2)
        if number % 5 == 0:
            assert same(resumed(config, copy).params, weights[1]), what
            assert steps(copy) == [1] and (copy / "checkpoints" / "2.damaged").is_dir()
        shutil.rmtree(copy)


def test_a_run_goes_on_from_the_one_before(config, whole, tmp_path):
    workdir, weights = whole
    copy = shutil.copytree(workdir, tmp_path / "run")
    damage(random.Random(1), copy / "checkpoints" / "2")
    assert train(config, copy, devices=jax.devices()[:1])["step"] == 2
    assert steps(copy) == [1, 2] and (copy / "checkpoints" / "2.damaged").is_dir()
    assert same(load(copy)[1], weights[2])


def test_where_none_is_whole_one_line_names_them_all(config, whole, tmp_path):
    copy = shutil.copytree(whole[0], tmp_path / "run")
    for step in (1, 2):
        damage(random.Random(step), copy / "checkpoints" / str(step))
    for use in (load, lambda path: resumed(config, path)):
        with pytest.raises(UserError, match=r"step 2: .*; step 1: ") as caught:
            use(copy)
        assert "\n" not in str(caught.value)
    assert steps(copy) == [1, 2], "nothing is moved where nothing can take its place"


def test_one_without_digests_is_taken_at_its_word_and_told_when_it_cannot_be_read(whole, tmp_path):
    copy = shutil.copytree(whole[0], tmp_path / "run")
    for step in (1, 2):
        (copy / "checkpoints" / str(step) / digests.NAME).unlink()
    assert same(load(copy)[1], whole[1][2])
    for path in (copy / "checkpoints" / "2" / "params").rglob("*"):
        path.write_bytes(b"") if path.is_file() else None
    assert same(load(copy)[1], whole[1][1])
