"""Streaming: lazy reading, every document once per epoch, exact resumption, mixtures by weight."""

import collections
import json
import shutil

import jax
import numpy as np
import pytest
from helpers.train_tiny import tiny

import jaxseq
from jaxseq import data
from jaxseq.cli import main
from jaxseq.data import readers, streaming
from jaxseq.data.readers import jsonl
from jaxseq.errors import UserError
from jaxseq.train import metrics, planned, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """60 files of 5 documents: document j of file i is "i.j" and some words."""
    root = tmp_path_factory.mktemp("stream")
    for i in range(60):
        lines = (json.dumps({"text": f"{i}.{j} " + "word " * (i % 7)}) for j in range(5))
        (root / f"{i:02}.jsonl").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK", 400)


def config(path, **overrides):
    plain = {"data.source": "folder", "data.stream": True, "train.batch": 4, "eval.tokens": 300, "data.validation_every": 10}
    return tiny(path, **plain | overrides)


def opened(cfg, *share):
    stream = streaming.stream(cfg.data, cfg.eval.tokens, data.tokenizer(cfg.data))
    return stream, streaming.StreamBatches(cfg, stream, *share or (0, 1))


def test_the_first_step_reads_few_files_and_an_epoch_each_once(folder, small, monkeypatch):
    read = []
    plain = jsonl.read
    monkeypatch.setattr(jsonl, "read", lambda path, *rest: (read.append(path.name), plain(path, *rest))[1])
    stream, batches = opened(config(folder, **{"eval.tokens": 100}))
    held = set(stream.validation.store.ids())
    validating = len(read)
    next(batches)
    batches.coming.result()  # the prefetched block
    assert validating < 40 and len(read) - validating < 20, "60 files, of which a block needs some 6"
    assert held and stream.files == 60

    blocks, epochs = streaming._Blocks(stream, 0, [streaming.Cursor()]), ([], [])
    for document, place in blocks.passes[0]:
        if place.epoch == 2:
            break
        if document is not None:
            epochs[place.epoch].append(document.id)
    everything = set(epochs[0])
    assert sorted(epochs[0]) == sorted(epochs[1]) and len(everything) == len(epochs[0]), "each once an epoch"
    assert epochs[0] != epochs[1], "in another order"
    assert not held & everything and 240 < len(everything) < 300, "what validates never trains"


def test_what_validates_and_the_order_do_not_depend_on_where_the_folder_lies(folder, small, tmp_path):
    shutil.copytree(folder, tmp_path / "moved")
    (stream, batches), (other, moved) = opened(config(folder)), opened(config(tmp_path / "moved"))
    assert stream.validation.store.ids() == other.validation.store.ids()
    for _ in range(5):
        np.testing.assert_array_equal(next(batches)["tokens"], next(moved)["tokens"])


def test_memory_does_not_grow_with_the_corpus(tmp_path, small):
    """At most two blocks are in memory: no more is read from an endless file."""
    asked = []

    def endless():
        for number in range(10**9):
            asked.append(number)
            yield readers.Document(str(number), f"{number} words and words")

    lanes = (streaming.Lane("endless", (("endless", endless),), 1.0),)
    cfg = config(tmp_path)
    tokenizer = data.tokenizer(cfg.data)
    held = streaming.in_memory("endless", [], tokenizer)
    nothing = data.Documents(held, np.arange(0), tokenizer.boundary)
    stream = streaming.StreamedCorpus("endless", tokenizer, nothing, "", lanes, 0, 1, 1 << 60)
    batches = streaming.StreamBatches(cfg, stream, 0, 1)
    for _ in range(20):
        next(batches)
    batches.coming.result()
    rows = 20 * 4 * cfg.train.length
    assert len(asked) * 20 < rows + 3 * 2 * 400


@pytest.mark.parametrize("steps", [1, 7, 40])
def test_resumed_bitwise_and_the_same_for_any_number_of_processes(folder, small, steps):
    cfg = config(folder)
    _, whole = opened(cfg)
    for _ in range(steps):
        next(whole)
    state = json.loads(json.dumps(whole.state()))
    _, resumed = opened(cfg)
    resumed.restore(state)
    halves = [opened(cfg, index, 2)[1] for index in (0, 1)]
    for half in halves:
        half.restore(state)
    for _ in range(30):
        wanted, got = next(whole), next(resumed)
        parts = [next(half) for half in halves]
        for name in wanted:
            np.testing.assert_array_equal(got[name], wanted[name])
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), wanted[name])
    with pytest.raises(UserError, match="the data has changed"):
        opened(config(folder, **{"data.seed": 1}))[1].restore(state)


def test_a_mixture_is_streamed_by_its_weights(tmp_path, monkeypatch):
    """Corpora of 40 kB and 8 kB with weights 0.5 and 3: shares of 20/44 and 24/44 of every block."""
    monkeypatch.setattr(streaming, "BLOCK", 4400)
    for name, size in (("a", 400), ("b", 80)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": name * 87}) + "\n" for _ in range(size)))
    (tmp_path / "mix.json").write_text(json.dumps({n: {"path": f"{n}.jsonl", "weight": w} for n, w in (("a", 0.5), ("b", 3))}))
    cfg = config(tmp_path / "mix.json", **{"data.source": "mixture", "data.validation_every": 0})
    stream, _ = opened(cfg)
    assert stream.files == 2 and len(stream.validation) == 0
    blocks = streaming._Blocks(stream, 0, [streaming.Cursor()] * 2)
    for _ in range(20):
        names = collections.Counter(chr(document[1]) for document in blocks.next()[0])
        assert names["b"] / names["a"] == pytest.approx(1.2, abs=0.12)
    assert [cursor.epoch for cursor in blocks.cursors] == [1, 6] or blocks.cursors[1].epoch in (5, 6)


def test_damaged_records_count_once_however_often_they_are_read(tmp_path, monkeypatch):
    """data.skip_records in a stream: reported once over all epochs."""
    said = []
    monkeypatch.setattr("jaxseq.data.files.say", said.append)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"some words {i}"}) + "\n" for i in range(9)) + "[1]\n" * 2)
    cfg = config(tmp_path, **{"data.skip_records": 2})
    stream, batches = opened(cfg)
    while batches.blocks.cursors[0].epoch < 4:
        next(batches)
    batches.coming.result()
    assert stream.damaged == 2 and len(said) == 1 and "2 damaged record(s) skipped" in said[0]
    with pytest.raises(UserError, match="1 records are skipped already, raise data.skip_records"):
        opened(config(tmp_path, **{"data.skip_records": 1}))


def test_a_run_on_a_stream_goes_on_bitwise_and_says_what_is_not_known(folder, small, tmp_path, capsys, monkeypatch):
    one = jax.devices()[:1]
    cfg = config(folder, **{"train.steps": 6, "train.schedule": "constant"})
    lines = planned(cfg, tmp_path / "whole", devices=one).lines()
    assert "60 file(s)" in lines[1] and "not counted" in lines[1] and "within blocks of about 400 tokens" in lines[1]
    train(cfg, tmp_path / "whole", devices=one)
    train(config(folder, **{"train.steps": 3, "train.schedule": "constant"}), tmp_path / "parts", devices=one)
    train(cfg, tmp_path / "parts", devices=one)
    runs = [[row["loss"] for row in metrics.read(tmp_path / name)] for name in ("whole", "parts")]
    assert runs[0] == runs[1] and len(runs[0]) == 6
    seen, plain = [], streaming.StreamBatches.__next__

    def poison(self):
        seen.append(plain(self))
        return seen[-1] | {"weights": seen[-1]["weights"] * np.float32(np.nan if len(seen) == 2 else 1)}

    monkeypatch.setattr(streaming.StreamBatches, "__next__", poison)
    train(config(folder, **{"train.steps": 3, "train.rewind": 1}), tmp_path / "back", devices=one)
    assert len(seen) == 6, "the third batch was on its way when the second was seen to be bad"
    np.testing.assert_array_equal(seen[3]["tokens"], seen[2]["tokens"])
    assert main(["eval", f"--workdir={tmp_path}/whole", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bits_per_byte"] > 0


def test_a_given_validation_split_is_used_and_what_needs_all_data_refuses(folder, tmp_path):
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": f"{name} {i}"}) + "\n" for i in range(9)))
    stream, _ = opened(config(tmp_path, **{"eval.tokens": 50}))
    assert stream.validation.store.ids() == [f"validation.jsonl:{i}" for i in range(1, len(stream.validation) + 1)]
    assert stream.every == 0 and 50 <= stream.validation.lengths.sum() < 80
    with pytest.raises(UserError, match="data.stream"):
        data.corpus(config(folder).data)
    with pytest.raises(UserError, match="data.stream=false"):
        stream.split("train")
    empty = config(tmp_path / "train.jsonl", **{"data.source": "jsonl", "data.validation_every": 1})
    with pytest.raises(UserError, match="validation_every=1"):
        opened(empty)
    images = jaxseq.config("vit", **{"data.path": str(tmp_path), "data.stream": True})
    with pytest.raises(UserError, match="text without labels"):
        planned(images, tmp_path / "run")
