"""Mixtures: each corpus by its weight per epoch, validation documents once, one-line errors."""

import json
import re
from collections import Counter

import pytest
from helpers.data import data_config, write_jsonl

from jaxseq import data
from jaxseq.errors import UserError


def made(tmp_path, **parts):
    (tmp_path / "mix.json").write_text(json.dumps(parts))
    return {"source": "mixture", "path": str(tmp_path / "mix.json")}


def opened(values, **more):
    corpus = data.corpus(data_config(**values, **more).data)
    return corpus, [Counter(corpus.tokenizer.decode(ids) for ids in split) for split in (corpus.train, corpus.validation)]


@pytest.mark.parametrize("cached", [False, True])
def test_weights_say_how_often_an_epoch_has_a_document(tmp_path, cached):
    write_jsonl(tmp_path / "a.jsonl", [f"a{i}" for i in range(10)])
    (tmp_path / "b.csv").write_text("body\n" + "".join(f"b{i}\n" for i in range(400)))
    values = made(tmp_path, a={"path": "a.jsonl", "weight": 3}, b={"path": "b.csv", "field": "body", "weight": 0.25})
    values |= {"cache": str(tmp_path / "cache") if cached else None}
    corpus, (train, validation) = opened(values, validation_every=10)
    assert [train[f"a{i}"] for i in range(9)] == [3] * 9 and set(validation.values()) == {1} and len(validation) == 41
    assert set(train.values()) == {1, 3} and 60 < sum(name.startswith("b") for name in train) < 120
    assert not set(train) & set(validation)
    assert opened(values, validation_every=10)[1][0] == train
    again = made(tmp_path, a={"path": "a.jsonl", "weight": 2}, b={"path": "b.csv", "field": "body", "weight": 0.25})
    assert data.corpus(data_config(**again, validation_every=10).data).fingerprint != corpus.fingerprint


def test_validation_splits_of_the_parts_are_used(tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "train.jsonl", [f"{name}1", f"{name}2"])
    write_jsonl(tmp_path / "x" / "val.jsonl", ["x3"])
    _, (train, validation) = opened(made(tmp_path, x={"path": "x"}, y={"path": "y", "weight": 2}))
    assert train == {"x1": 1, "x2": 1, "y1": 2, "y2": 2} and validation == {"x3": 1}


CASES = {
    "[]": r"is no mixture; write",
    "{": r"is no JSON",
    '{"a": {"weight": 1}}': r"'a' has no path",
    '{"a": {"path": "x", "weight": 0}}': r"a.weight=0 must be above 0",
    '{"a": {"path": "x", "weight": NaN}}': r"a.weight=nan must be above 0",
    '{"a": {"path": "x", "weight": "2"}}': r"a.weight='2' is not known or of the wrong type",
    '{"a": {"path": "x", "more": 2}}': r"a.more=2 is not known or of the wrong type",
    '{"a": {"path": "nowhere"}}': r"nowhere does not exist; give the path",
    '{"a": {"path": "mix.json", "source": "mixture"}}': r"a.source=.mixture. is a mixture again; name its parts",
}


@pytest.mark.parametrize("content", CASES)
def test_faults_are_told_in_a_line(tmp_path, content):
    (tmp_path / "mix.json").write_text(content)
    with pytest.raises(UserError) as caught:
        data.corpus(data_config(source="mixture", path=str(tmp_path / "mix.json")).data)
    assert re.search(CASES[content], str(caught.value)) and "; " in str(caught.value)
