"""Damaged records: an error by default; with data.skip_records up to that many are skipped, named and counted."""

import gzip
import json

import numpy as np
import pytest
from helpers.data import data_config

from jaxseq import data
from jaxseq.data import labelled
from jaxseq.errors import UserError
from jaxseq.train.objectives import _task

GOOD = [json.dumps({"text": f"document {number}"}).encode() for number in range(8)]
BAD = [b'{"text": ', b"[1]", b'{"text": 3}', b'{"text": null}', b'{"body": "x"}', b'{"text": "\xff"}']
FILES = {
    "lines.jsonl": b"\n".join([*GOOD[:4], *BAD, *GOOD[4:]]),
    "lines.jsonl.gz": gzip.compress(b"\n".join([*GOOD, *BAD])),
    "array.json": json.dumps([*map(json.loads, GOOD), 1, "x", [], {"text": 3}, {"text": None}, {}]).encode(),
    "table.csv": b"n,text\n" + b"".join(b"%d,document\n" % n for n in range(8)) + b"1\n" * 6,
    "text.txt": b"<|endoftext|>".join([*[b"document %d" % n for n in range(8)], *[b"\xff%d" % n for n in range(6)]]),
}


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr("jaxseq.data.files.say", lines.append)
    return lines


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_so_many_are_left_out_and_no_more(name, cached, tmp_path, said):
    path = tmp_path / name
    path.write_bytes(FILES[name])
    config = lambda skip: data_config(  # noqa: E731
        path=str(path), skip_records=skip, validation_every=4, cache=str(tmp_path / "cache") if cached else None
    ).data
    with pytest.raises(UserError) as first:
        data.corpus(config(0))
    with pytest.raises(UserError, match="5 records are skipped already, raise data.skip_records"):
        data.corpus(config(5))
    assert not said
    for _ in range(2):  # read, then taken from the cache
        corpus = data.corpus(config(6))
        assert len(corpus.train) + len(corpus.validation) == 8 and corpus.damaged == 6
        (line,) = said
        assert line.startswith(f"{path}: 6 damaged record(s) skipped") and str(first.value) in line
        assert line.endswith(" | and 3 more") and "\n" not in line
        said.clear()
    assert len(list(data.texts(config(6)))) == 6
    with pytest.raises(UserError):
        data.corpus(config(0))  # whatever the cache contains


def test_a_file_that_cannot_be_read_on_is_no_record(tmp_path):
    path = tmp_path / "lines.jsonl.gz"
    path.write_bytes(FILES[path.name][:-9])
    with pytest.raises(UserError, match="cannot be decompressed"):
        data.corpus(data_config(path=str(path), skip_records=99).data)


def test_the_files_of_a_folder_have_one_allowance_and_those_of_a_mixture_each_their_own(tmp_path):
    few = {"validation_every": 4}
    for name in ("a", "b"):
        (tmp_path / "folder" / name).mkdir(parents=True)
        (tmp_path / "folder" / name / "lines.jsonl").write_bytes(b"\n".join([*GOOD, *BAD]))
    with pytest.raises(UserError, match="b/lines.jsonl line 9 is no JSON.*6 records are skipped already"):
        data.corpus(data_config(path=str(tmp_path / "folder"), skip_records=6, **few).data)
    assert data.corpus(data_config(path=str(tmp_path / "folder"), skip_records=12, **few).data).damaged == 12
    (tmp_path / "mixture.json").write_text(json.dumps({name: {"path": f"folder/{name}"} for name in ("a", "b")}))
    both = data_config(path=str(tmp_path / "mixture.json"), source="mixture", skip_records=6, **few).data
    assert data.corpus(both).damaged == 12


def test_what_was_left_out_stands_in_the_plan(tmp_path):
    (tmp_path / "lines.jsonl").write_bytes(FILES["lines.jsonl"])
    config = data_config(path=str(tmp_path / "lines.jsonl"), skip_records=6, validation_every=4)
    assert _task.TextTask(config).damaged() == 6


def test_rows_of_parquet(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = [None, "a", "b", None, "c", "d"]
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="row 0: 'text' is null"):
        data.corpus(data_config(path=str(tmp_path / "x.parquet"), validation_every=2).data)
    corpus = data.corpus(data_config(path=str(tmp_path / "x.parquet"), validation_every=2, skip_records=2).data)
    assert corpus.damaged == 2 and [len(corpus.train), len(corpus.validation)] == [2, 2]


def test_labelled_lines(tmp_path, said):
    path = tmp_path / "labelled.jsonl"
    lines = ['{"text": "a", "label": 1}', '{"text": "b", "label": 2.5}', '{"text": "b"}', "x", '{"text": "b", "label": 0}']
    path.write_text("\n".join(lines))
    row = lambda text: {"text": text}  # noqa: E731
    with pytest.raises(UserError, match="line 2: "):
        labelled.text(data_config(path=str(path)).data, row)
    found = labelled.text(data_config(path=str(path), skip_records=3).data, row)
    assert found.labels.tolist() == [1, 0] and len(found.damage.messages()) == 3 and "3 damaged record(s)" in said[0]


def test_images_that_cannot_be_read_weigh_nothing(tmp_path, said):
    image = pytest.importorskip("PIL.Image")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        image.fromarray(np.full((4, 4, 3), 200, np.uint8)).save(tmp_path / name / "0.png")
        (tmp_path / name / "1.png").write_bytes(b"no image")
    examples = lambda skip: labelled.splits(  # noqa: E731
        labelled.images(data_config(path=str(tmp_path), skip_records=skip).data, 4), 0
    )["train"]
    with pytest.raises(UserError, match="cat/1.png cannot be read as an image"):
        [examples(0)[i] for i in range(4)]
    rows = [examples(2)[i] for i in range(4)]
    some = examples(2)
    rows = [some[i] for i in (*range(4), *range(4))]  # the same records each time, counted once
    assert [float(row["weights"]) for row in rows] == [1, 0] * 4 and rows[1]["images"].shape == (4, 4, 3)
    assert len(some._labelled.damage.messages()) == 2 and "cat/1.png" in said[0]
    one = examples(1)
    with pytest.raises(UserError, match="dog/1.png .*1 records are skipped already"):
        [one[i] for i in range(4)]
