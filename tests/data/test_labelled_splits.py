"""Splits of labelled data: a given validation split is used, test splits are skipped."""

import json

import numpy as np
import pytest
from helpers.data import data_config

from jaxseq.data import labelled
from jaxseq.errors import UserError

COUNTS = {"train": 6, "validation": 3, "test": 2}


def lines(root, name, count, label=lambda i: "ab"[i % 2]):
    rows = (json.dumps({"text": f"{name} {i}", "label": label(i)}) + "\n" for i in range(count))
    (root / f"{name}.jsonl").write_text("".join(rows))


def arrays(root, name, count):
    np.savez(root / f"{name}.npz", images=np.full((count, 2, 2, 1), len(name), np.uint8), labels=np.arange(count) % 2)


def pictures(root, name, count):
    image = pytest.importorskip("PIL.Image")
    for i in range(count):
        folder = root / name / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image.new("RGB", (2, 2), (len(name), 0, 0)).save(folder / f"{i}.png")


def opened(make, root, every=4):
    settings = data_config(path=str(root), side=2, validation_every=every).data
    found = labelled.text(settings, lambda text: {"text": text}) if make is lines else labelled.images(settings, 2)
    return found, labelled.splits(found, every)


def origin(make, example):
    """The split that an example belongs to."""
    if make is lines:
        return example["text"].split()[0]
    shown = round((float(example["images"].flat[0]) + 1) * 127.5)
    return next(name for name in COUNTS if len(name) == shown)


@pytest.mark.parametrize("make", [lines, arrays, pictures])
def test_a_given_validation_split_is_used_and_test_data_are_not(make, tmp_path, capsys):
    for name, count in COUNTS.items():
        make(tmp_path, name, count)
    found, splits = opened(make, tmp_path)
    for split in ("train", "validation"):
        assert len(splits[split]) == COUNTS[split]
        assert {origin(make, splits[split][i]) for i in range(COUNTS[split])} == {split}
    assert found.classes in (("a", "b"), ("0", "1"))
    assert "skips test" in capsys.readouterr().err.replace("\n", " ")
    (tmp_path / "other").mkdir()
    for name, count in {"train": 6, "validation": 2}.items():
        make(tmp_path / "other", name, count)
    assert opened(make, tmp_path / "other")[0].fingerprint != found.fingerprint


@pytest.mark.parametrize("make", [lines, arrays, pictures])
def test_without_one_every_nth_example_validates(make, tmp_path):
    for name in ("train", "test"):
        make(tmp_path, name, 8)
    _, splits = opened(make, tmp_path)
    assert (len(splits["train"]), len(splits["validation"])) == (6, 2)


def test_a_class_that_only_validates_is_refused(tmp_path):
    lines(tmp_path, "train", 6)
    lines(tmp_path, "validation", 3, label=lambda i: "abc"[i])
    with pytest.raises(UserError, match="has the class c in its validation split and not in train"):
        opened(lines, tmp_path)
    (tmp_path / "train.csv").write_text("text,label\nx,a\n")
    with pytest.raises(UserError, match="labelled texts are lines of .jsonl"):
        opened(lines, tmp_path)
