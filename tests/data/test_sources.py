"""The documents of each source, and the cache of tokens."""

import bz2
import gzip
import json
import lzma
import os
import sys

import numpy as np
import pytest
import zstandard
from helpers.data import data_config, texts_of, write_jsonl

from jaxseq import data
from jaxseq.data import progress, sources, store
from jaxseq.errors import UserError

COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
COMPRESS[".zst"] = lambda content: zstandard.ZstdCompressor().compress(content)


def read(**overrides):
    return list(sources.source(data_config(**overrides).data).read())


def text_of(documents):
    return "".join(document.text for document in documents)


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("source", ["sotu", "jsonl"])
def test_jsonl_plain_and_compressed(tmp_path, suffix, source):
    lines = [{"id": "a", "body": "one\ntwo"}, {"id": 7, "body": "é"}, {"body": "last"}]
    content = "\ufeff" + "\n\n".join(json.dumps(line) for line in lines)
    (tmp_path / f"x.jsonl{suffix}").write_bytes(COMPRESS[suffix](content.encode()))
    documents = read(source=source, path=str(tmp_path / f"x.jsonl{suffix}"), field="body")
    assert documents == [("a", "one\ntwo"), ("7", "é"), (f"x.jsonl{suffix}:5", "last")]


def test_half_a_surrogate_pair_becomes_the_replacement_character(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a\\ud83d b \\ud83d\\ude00"}\n')
    assert read(path=str(tmp_path / "x.jsonl"))[0].text == "a\ufffd b 😀"


@pytest.mark.parametrize("suffix", COMPRESS)
def test_one_long_text_is_cut_at_blank_lines(tmp_path, suffix):
    paragraphs = [f"Paragraph {i}.\nIts second line, {'x' * (i % 7)}.\n\n" for i in range(400)]
    (tmp_path / f"book.txt{suffix}").write_bytes(COMPRESS[suffix]("".join(paragraphs).encode()))
    config = data_config(path=str(tmp_path / f"book.txt{suffix}"))
    documents = list(sources.source(config.data).read())
    assert text_of(documents) == "".join(paragraphs)
    assert all(document.text.endswith(".\n\n") for document in documents)
    assert 40 <= len(documents) <= 110
    assert len(data.corpus(config.data).validation) >= 2


def test_pieces_of_a_text_are_cut_wherever_they_must(tmp_path):
    for name, text in {
        "lines.txt": "a line of text\n" * 300,
        "words.txt": "word " * 900,
        "windows.txt": "a line\r\n\r\n" * 300,
        "characters.txt": "日本語" * 500,
        "tiny.txt": "日本" * 15,
    }.items():
        (tmp_path / name).write_bytes(text.encode())
        documents = read(path=str(tmp_path / name))
        assert text_of(documents) == text, name
        assert len(documents) >= 20, name
        cut = {document.text[-1] for document in documents[:-1]}
        assert cut <= {"lines.txt": {"\n"}, "words.txt": {" "}, "windows.txt": {"\n"}}.get(name, set("日本語")), name


def test_pieces_of_a_large_text_are_at_most_64_kib(tmp_path):
    (tmp_path / "large.txt").write_text("0123456789abcde\n" * (1 << 20))  # 16 MiB
    sizes = [len(document.text) for document in read(path=str(tmp_path / "large.txt"))]
    assert sum(sizes) == 1 << 24 and max(sizes) <= (1 << 16) + 16 and len(sizes) >= 255


def test_end_of_text_marks_separate_documents(tmp_path):
    text = "\ufeffOne.\n\nStill one.\n<|endoftext|>\nTwo.\n<|endoftext|>\n\n<|endoftext|>Three."
    (tmp_path / "stories.txt").write_text(text)
    assert [d.text for d in read(path=str(tmp_path / "stories.txt"))] == ["One.\n\nStill one.", "Two.", "Three."]


def test_folder_reads_every_text_file_by_path(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("hidden")
    (tmp_path / "b" / "two.py").write_text("print()\n")
    (tmp_path / "a.txt").write_text("\ufeffone")
    (tmp_path / "c.md.gz").write_bytes(gzip.compress(b"four"))
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "empty.txt").write_text("")
    write_jsonl(tmp_path / "b" / "three.jsonl", ["x", "y"])
    found = [(d.id, d.text) for d in read(path=str(tmp_path)) if d.text]
    assert found == [
        ("a.txt", "one"),
        ("b/three.jsonl#d0", "x"),
        ("b/three.jsonl#d1", "y"),
        ("b/two.py", "print()\n"),
        ("c.md.gz", "four"),
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x.txt", "text"),
        ("x.md.gz", "text"),
        ("x.jsonl", "jsonl"),
        ("x.json", "jsonl"),
        ("x.ndjson.zst", "jsonl"),
        ("x.json.gz", "jsonl"),
        ("x.parquet", "table"),
        ("X.ARROW", "table"),
        ("x.JSONL.GZ", "jsonl"),
        ("x.CSV", "csv"),
        ("x.fa.gz", "fasta"),
        ("train.bin", "tokens"),
        ("folder/x.txt", "folder"),
        ("tables/x.parquet", "folder"),
        ("saved/state.json", "folder"),
    ],
)
def test_the_source_is_guessed_from_the_path(tmp_path, name, expected):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("x")
    assert sources.guess(file if file.parent == tmp_path else file.parent) == expected


def test_huggingface_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"body": texts_of(range(1, 41)), "id": list(range(40))})
    table.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(str(tmp_path / "splits"))
    (tmp_path / "tables").mkdir()
    table.select(range(15)).to_parquet(str(tmp_path / "tables" / "0.parquet"))
    table.select(range(15, 40)).to_parquet(str(tmp_path / "tables" / "1.parquet"))
    for name, files in {"saved": ["data-00000-of-00001.arrow"], "splits": ["train/data-00000-of-00001.arrow"],
                        "tables": ["0.parquet", "1.parquet"]}.items():  # fmt: skip
        documents = read(path=str(tmp_path / name), field="body")
        assert [document.text for document in documents] == texts_of(range(1, 41))
        assert [document.id.partition("#")[2] for document in documents] == [str(number) for number in range(40)]
        assert sorted({document.id.partition("#")[0] for document in documents}) == files
        with pytest.raises(UserError, match=r"no column 'text' \(it has: body, id\); set data.field"):
            read(path=str(tmp_path / name))


def test_huggingface_without_the_package_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'jaxseq\[datasets\]'"):
        data.corpus(data_config(path=str(tmp_path / "x.parquet")).data)


# The cache.


def cached(tmp_path, **overrides):
    return data_config(**{"path": str(tmp_path / "corpus.jsonl"), "cache": str(tmp_path / "cache"), **overrides})


def entries(tmp_path):
    return sorted(path for path in (tmp_path / "cache").iterdir())


@pytest.fixture
def no_reading(monkeypatch):
    """Makes a second tokenisation fail."""

    def forbid():
        def fail(*_):
            raise AssertionError("tokenised again")

        monkeypatch.setattr(store, "_tokenised", fail)

    return forbid


def test_the_cache_gives_the_same_corpus_without_tokenising(tmp_path, no_reading):
    write_jsonl(tmp_path / "corpus.jsonl", [*texts_of([5, 0, 70, 3, 900]), "é\n日"])
    memory = data.corpus(cached(tmp_path, cache=None, validation_every=2).data)
    data.corpus(cached(tmp_path, validation_every=2).data)
    no_reading()
    disk = data.corpus(cached(tmp_path, validation_every=2).data)
    assert isinstance(disk.train.store.tokens, np.memmap)
    assert (disk.fingerprint, disk.train_bytes) == (memory.fingerprint, memory.train_bytes)
    for one, two in zip(memory.documents("validation"), disk.documents("validation"), strict=True):
        assert (one[0], one[2]) == (two[0], two[2])
        np.testing.assert_array_equal(one[1], two[1])
    (entry,) = entries(tmp_path)
    assert sorted(path.name for path in entry.iterdir()) == [
        "digests.npy",
        "ids.jsonl",
        "meta.json",
        "n_bytes.npy",
        "offsets.npy",
        "tokens.bin",
    ]


def test_a_changed_file_is_read_again(tmp_path):
    file = tmp_path / "corpus.jsonl"
    write_jsonl(file, texts_of([9] * 20))
    before = data.corpus(cached(tmp_path).data)
    write_jsonl(file, texts_of([9] * 19 + [8]))  # another size
    assert data.corpus(cached(tmp_path).data).fingerprint != before.fingerprint
    size, texts = file.stat().st_size, texts_of([9] * 19 + [8])
    write_jsonl(file, texts[1:] + texts[:1])
    os.utime(file, ns=(0, 0))  # the same size, another time
    assert file.stat().st_size == size and len(entries(tmp_path)) == 2
    data.corpus(cached(tmp_path).data)
    assert len(entries(tmp_path)) == 3


def test_a_crash_half_way_leaves_no_entry(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "corpus.jsonl", texts_of([9] * 20))
    monkeypatch.setattr(np, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        data.corpus(cached(tmp_path).data)
    assert entries(tmp_path) == []
    monkeypatch.undo()
    (tmp_path / "cache" / "draft-dead").mkdir()  # what a killed process leaves behind
    os.utime(tmp_path / "cache" / "draft-dead", (0, 0))
    assert len(data.corpus(cached(tmp_path).data).train) == 19
    assert len(entries(tmp_path)) == 1


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.npy", "meta.json"])
def test_a_damaged_entry_is_made_again(tmp_path, name):
    write_jsonl(tmp_path / "corpus.jsonl", texts_of([9] * 20))
    fingerprint = data.corpus(cached(tmp_path).data).fingerprint
    (entry,) = entries(tmp_path)
    content = (entry / name).read_bytes()
    (entry / name).write_bytes(content[: len(content) // 2])
    again = data.corpus(cached(tmp_path).data)
    assert again.fingerprint == fingerprint and len(again.train[0]) == 10
    assert (entry / name).read_bytes() == content


def test_a_second_process_may_have_been_faster(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "corpus.jsonl", texts_of([9] * 20))
    fill = store._fill

    def slowly(draft, source, tokenizer):
        monkeypatch.setattr(store, "_fill", fill)
        data.corpus(cached(tmp_path).data)  # another process, in the meantime
        theirs.extend(path.stat().st_ino for path in entries(tmp_path) if not path.name.startswith("draft-"))
        fill(draft, source, tokenizer)

    theirs = []
    monkeypatch.setattr(store, "_fill", slowly)
    assert len(data.corpus(cached(tmp_path).data).train) == 19
    assert [path.stat().st_ino for path in entries(tmp_path)] == theirs


def test_large_files_are_cached_by_default_and_small_ones_are_not(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_jsonl(tmp_path / "corpus.jsonl", texts_of([9] * 20))
    data.corpus(cached(tmp_path, cache=None).data)
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(store, "CACHED_ABOVE_AS_BYTES", 100)
    data.corpus(cached(tmp_path, cache=None).data)
    assert len(list((tmp_path / "cache" / "jaxseq").iterdir())) == 1


def test_a_bar_is_shown_to_those_who_wait(tmp_path, monkeypatch, capsys):
    write_jsonl(tmp_path / "corpus.jsonl", texts_of([2000] * 20))
    monkeypatch.setattr(store, "BATCH_BYTES", 4000)
    data.corpus(cached(tmp_path, cache=None).data)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(progress, "PATIENCE", -1)
    monkeypatch.setenv("FORCE_COLOR", "1")
    data.corpus(cached(tmp_path, cache=None).data)
    shown = capsys.readouterr()
    assert shown.out == "" and "tokenising" in shown.err
