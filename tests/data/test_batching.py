"""Packing, batching and resuming: every token once per epoch, for any number of processes and any point of resumption."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.data import data_config, texts_of, write_jsonl

from jaxseq import data
from jaxseq.data.packing import PackedRows
from jaxseq.errors import UserError

LENGTHS = [1, 40, 3, 16, 15, 17, 2, 64, 5, 33, 1, 1, 7]  # shorter than, equal to and longer than a row of 16


@pytest.fixture
def path(tmp_path):
    return write_jsonl(tmp_path / "corpus.jsonl", texts_of(LENGTHS))


def take(batches, count):
    return [next(batches) for _ in range(count)]


def rows_of(batches):
    return [{name: array[i] for name, array in batch.items()} for batch in batches for i in range(len(batch["pos"]))]


def reference_rows(documents, order, boundary, length):
    """The expected rows, by a plain loop over the packed stream."""
    stream, pos = [], []
    for i in order:
        for at, token in enumerate(documents[i]):
            stream.append(int(token))
            pos.append(at)
    targets = [*stream[1:], boundary]
    rows = []
    for first in range(0, len(stream), length):
        row = {name: [] for name in ("tokens", "targets", "pos", "weights")}
        for at in range(first, first + length):
            inside = at < len(stream)
            row["tokens"].append(stream[at] if inside else boundary)
            row["targets"].append(targets[at] if inside else boundary)
            row["pos"].append(min(pos[at], at - first) if inside else -1)
            row["weights"].append(float(inside))
        rows.append(row)
    return rows


@pytest.mark.parametrize("length", [1, 5, 16, 1000])
def test_rows_are_the_packed_stream(path, length):
    config = data_config(path=path, validation_every=0)
    documents = data.corpus(config.data).train
    rows = PackedRows(documents, length, seed=3)
    for epoch in (0, 1):
        order = np.random.default_rng([3, epoch]).permutation(len(documents))
        expected = reference_rows(documents, order, 256, length)
        assert len(rows) == len(expected)
        for i, row in enumerate(expected):
            actual = rows[epoch * len(rows) + i]
            for name, values in row.items():
                np.testing.assert_array_equal(actual[name], values, err_msg=f"{name} of row {i}, epoch {epoch}")


def test_a_batch_has_the_promised_shapes(path):
    config = data_config(path=path, validation_every=0, train__batch=6)
    batch = next(data.batches(config, data.corpus(config.data), 1, 3))
    assert {name: (array.shape, str(array.dtype)) for name, array in batch.items()} == {
        "tokens": ((2, 16), "int32"),
        "targets": ((2, 16), "int32"),
        "pos": ((2, 16), "int32"),
        "weights": ((2, 16), "float32"),
    }


def test_an_epoch_over_two_processes_is_the_stream(path):
    """The rows of both processes, in order, contain every document whole and once, in each of three epochs."""
    config = data_config(path=path, validation_every=0, train__batch=4)
    corpus = data.corpus(config.data)
    sides = [data.batches(config, corpus, p, 2) for p in range(2)]
    per_epoch = sides[0].rows_per_epoch
    assert per_epoch % 4  # so that batches cross the borders of epochs
    batches = [take(side, per_epoch) for side in sides]  # rows of four epochs
    rows = [row for pair in zip(*batches, strict=True) for side in pair for row in rows_of([side])]
    wanted = sorted(document.tobytes() for document in corpus.train)
    orders = []
    for epoch in range(3):
        packed = PackedRows(corpus.train, 16, config.data.seed)
        whole = {packed[epoch * per_epoch + i]["tokens"].tobytes(): i for i in range(per_epoch)}
        seen = rows[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(row["tokens"].tobytes() for row in seen) == sorted(whole)
        order = [whole[row["tokens"].tobytes()] for row in seen]
        orders.append(order)
        real = [row["weights"] > 0 for row in seen]
        stream = np.concatenate([seen[at]["tokens"][real[at]] for at in np.argsort(order)])
        targets = np.concatenate([seen[at]["targets"][real[at]] for at in np.argsort(order)])
        np.testing.assert_array_equal(targets, [*stream[1:], 256])
        documents = np.split(stream, np.flatnonzero(stream == 256)[1:])
        assert sorted(document.tobytes() for document in documents) == wanted
    assert orders[0] != sorted(orders[0]) and orders[0] != orders[1]


def test_processes_stacked_are_one_process(path):
    config = data_config(path=path, validation_every=0, train__batch=4)
    corpus = data.corpus(config.data)
    alone, sides = data.batches(config, corpus), [data.batches(config, corpus, p, 2) for p in range(2)]
    for _ in range(9):
        whole, parts = next(alone), [next(side) for side in sides]
        for name in whole:
            np.testing.assert_array_equal(whole[name], np.concatenate([part[name] for part in parts]))


def test_seed_changes_the_rows(path):
    config = data_config(path=path, validation_every=0)
    corpus = data.corpus(config.data)
    first, again = (next(data.batches(config, corpus))["tokens"] for _ in range(2))
    other = next(data.batches(data_config(path=path, validation_every=0, seed=1), corpus))["tokens"]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("prefetch", [0, 4])
@pytest.mark.parametrize("stop", [0, 1, 7])
def test_resumed_batches_are_the_very_next(path, prefetch, stop):
    config = data_config(path=path, validation_every=0, prefetch=prefetch)
    corpus = data.corpus(config.data)
    batches = data.batches(config, corpus)
    take(batches, stop)
    time.sleep(0.05)  # let the prefetching threads run ahead
    state = json.loads(json.dumps(batches.state()))
    expected = take(batches, 12)
    resumed = data.batches(config, corpus)
    take(resumed, 3)
    resumed.restore(state)
    assert resumed.state() == state
    for one, two in zip(expected, take(resumed, 12), strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
    assert resumed.state() == batches.state()


def test_resume_in_a_new_process(path, tmp_path):
    config = data_config(path=path, validation_every=0)
    batches = data.batches(config, data.corpus(config.data))
    take(batches, 5)
    state = batches.state()
    program = (
        "import json, sys, numpy as np\n"
        "from helpers.data import data_config\n"
        "from jaxseq import data\n"
        "config = data_config(path=sys.argv[1], validation_every=0)\n"
        "batches = data.batches(config, data.corpus(config.data))\n"
        "batches.restore(json.loads(sys.argv[2]))\n"
        "np.savez(sys.argv[3], **next(batches))\n"
    )
    out = tmp_path / "next.npz"
    paths = {"PYTHONPATH": ":".join(sys.path), "HOME": str(tmp_path), "PATH": ""}
    command = [sys.executable, "-c", program, path, json.dumps(state), str(out)]
    subprocess.run(command, check=True, env=paths, timeout=60)
    expected, found = next(batches), np.load(out)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_resume_with_other_batch_and_processes_goes_on_with_the_next_row(path):
    config = data_config(path=path, validation_every=0, train__batch=4)
    corpus = data.corpus(config.data)
    batches = data.batches(config, corpus)
    take(batches, 5)
    state = batches.state()
    expected = [row["tokens"] for row in rows_of(take(batches, 3))]
    wider = data.batches(data_config(path=path, validation_every=0, train__batch=6), corpus, 1, 2)
    wider.restore(state)
    found = [row["tokens"] for row in rows_of(take(wider, 2))]
    np.testing.assert_array_equal(found, [expected[i] for i in (3, 4, 5, 9, 10, 11)])


@pytest.mark.parametrize("change", [{"train__length": 8}, {"seed": 1}, {"validation_every": 2}])
def test_a_state_of_other_data_is_refused(path, change):
    config = data_config(path=path, validation_every=0)
    state = data.batches(config, data.corpus(config.data)).state()
    config = data_config(**{"path": path, "validation_every": 0, **change})
    with pytest.raises(UserError, match="data has changed since the checkpoint"):
        data.batches(config, data.corpus(config.data)).restore(state)


def test_epoch_counts_all_processes(path):
    config = data_config(path=path, validation_every=0, train__batch=4)
    batches = data.batches(config, data.corpus(config.data), 0, 2)
    take(batches, 3)
    assert batches.epoch == 12 / batches.rows_per_epoch
    assert batches.targets_per_epoch == sum(LENGTHS) + len(LENGTHS)


def test_a_corpus_shorter_than_a_row_is_padded(tmp_path):
    path = write_jsonl(tmp_path / "tiny.jsonl", ["abc"])
    config = data_config(path=path, validation_every=0, train__batch=2)
    batch = next(data.batches(config, data.corpus(config.data)))
    np.testing.assert_array_equal(batch["tokens"][0, :4], [256, 97, 98, 99])
    np.testing.assert_array_equal(batch["targets"][0, :4], [97, 98, 99, 256])
    np.testing.assert_array_equal(batch["pos"], [[0, 1, 2, 3] + [-1] * 12] * 2)
    np.testing.assert_array_equal(batch["weights"], [[1] * 4 + [0] * 12] * 2)


def test_every_nth_document_validates(tmp_path):
    path = write_jsonl(tmp_path / "corpus.jsonl", texts_of(range(1, 11)))
    corpus = data.corpus(data_config(path=path, validation_every=3).data)
    assert [name for name, _, _ in corpus.documents("validation")] == ["d2", "d5", "d8"]
    assert [name for name, _, _ in corpus.documents("train")] == ["d0", "d1", "d3", "d4", "d6", "d7", "d9"]
    assert (corpus.train_bytes, corpus.validation_bytes) == (55 - 18, 18)
    assert len(corpus.train) == 7 and len(corpus.train[1:3]) == 2


def test_documents_give_boundary_ids_and_bytes(tmp_path):
    path = write_jsonl(tmp_path / "corpus.jsonl", ["é", "日本"])
    corpus = data.corpus(data_config(path=path, validation_every=2).data)
    ((name, ids, n_bytes),) = corpus.documents("validation")
    assert (name, n_bytes) == ("d1", 6)
    np.testing.assert_array_equal(ids, [256, *"日本".encode()])
    assert ids.dtype == np.int32


def test_embedded_corpora():
    began = time.monotonic()
    sotu = data.corpus(data_config().data)
    dna = data.corpus(data_config(source="dna").data)
    assert time.monotonic() - began < 10  # about 0.3 s on an idle machine
    assert (len(sotu.train), len(sotu.validation)) == (222, 11)
    assert sotu.train_bytes + sotu.validation_bytes == 10_761_158
    assert dna.train_bytes + dna.validation_bytes == 4_641_652
    assert bytes(dna.train[0][1:11].astype(np.uint8)) == b"AGCTTTTCAT"  # the published start of U00096.3
    assert (np.bincount(np.concatenate(list(dna.train)))[[65, 67, 71, 84]] > 1_000_000).all()
    assert max(map(len, dna.train)) == 8193
    assert sotu.fingerprint != dna.fingerprint == data.corpus(data_config(source="dna").data).fingerprint


def test_batches_of_one_row(path):
    batches = data.batches(config := data_config(path=path, train__batch=1, validation_every=0), data.corpus(config.data))
    assert next(batches)["tokens"].shape == (1, 16)
