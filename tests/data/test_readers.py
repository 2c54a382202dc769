"""Each kind of file: its documents, and the errors for damaged, hostile and wrong files."""

import gzip
import lzma
import os
import re

import numpy as np
import pytest
import zstandard
from helpers.data import data_config

from jaxseq import data
from jaxseq.data import bpe as training
from jaxseq.data import files, sources
from jaxseq.errors import UserError

KINDS = {  # a file of each kind, and the texts that it holds
    "x.txt": ("one text\n", ["one text\n"]),
    "x.jsonl": ('{"text": "a"}\n{"text": "b"}\n', ["a", "b"]),
    "x.ndjson": ('{"text": "a"}\n', ["a"]),
    "x.json": ('[{"text": "a"},\n {"text": "b"}]', ["a", "b"]),
    "x.csv": ('n,text\n1,"a, ""b""\nc"\n2,d\n', ['a, "b"\nc', "d"]),
    "x.tsv": ("n\ttext\n1\ta b\n2\tc\n", ["a b", "c"]),
    "x.fasta": (">one of them\nACGT\nacgn\n\n; a comment\n>two\nTT\n", ["ACGTACGN", "TT"]),
}
COMPRESS = {
    "": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": lambda content: zstandard.ZstdCompressor().compress(content),
}  # fmt: skip


def read(path, **overrides):
    config = data_config(path=str(path), validation_every=0, **overrides)
    return [document.text for document in sources.source(config.data).read()]


def refused(path, **overrides):
    with pytest.raises(UserError) as caught:
        data.corpus(data_config(path=str(path), validation_every=0, **overrides).data)
    message = str(caught.value)
    assert "\n" not in message and "; " in message and str(path) in message
    return message


@pytest.mark.parametrize("name", KINDS)
def test_a_file_is_read_alike_whatever_its_case_line_ends_and_compression(tmp_path, name):
    content, expected = KINDS[name]
    for ends in ("\n", "\r\n"):
        for suffix, compress in COMPRESS.items():
            for spelled in (name + suffix, (name + suffix).upper()):
                path = tmp_path / spelled
                path.write_bytes(compress(content.replace("\n", ends).encode()))
                found = ["".join(read(path))] if name == "x.txt" else read(path)
                assert [text.replace("\r\n", "\n") for text in found] == expected, (spelled, ends)
                (tmp_path / "x").mkdir(exist_ok=True)
                path.rename(tmp_path / "x" / spelled)
                in_folder = [text.replace("\r\n", "\n") for text in read(tmp_path / "x")]
                assert in_folder == expected, (spelled, ends)
                (tmp_path / "x" / spelled).unlink()


CASES = {
    "null.jsonl": ('{"text": null}', r"line 1: 'text' is null; give it a text \(it may be empty\) or remove the record"),
    "list.jsonl": ('{"text": []}', r"line 1: 'text' is list, not text; set data.field"),
    "deep.jsonl": ('{"text": ' + "[" * 100_000, r"line 1 is no JSON"),
    "deep.json": ("[" * 100_000, r"is no JSON"),
    "digits.jsonl": ('{"text": "a", "n": ' + "9" * 5000 + "}", r"line 1 is no JSON \(.*digits"),
    "column.csv": ("a,b\n1,2\n", r"has no column 'text' \(it has: a, b\); set data.field"),
    "empty.csv": ("", r"has no column 'text' \(it has: none\)"),
    "short.csv": ("n,text\n1\n", r"row 1: 'text' is null"),
    "quote.csv": ('n,text\n1,"a" b\n', r"is not a table after line 1 \("),
    "latin.csv": (b"text\nfin\xe9\n", r"is not UTF-8 \(0xe9"),
    "prose.fa": ("once upon a time", r"line 1 is before the first header; begin each sequence with a line >NAME"),
    "digits.fa": (">a\nAC9T\n", r"line 2 has a character that is not a letter of a sequence"),
    "odd.bin": (b"abc", r"holds token ids; set data.tokenizer to the file that they were made with"),
    "wide.txt": (b"\xff\xfea\0b", r"begins as utf-16 and is not \(.*\); convert it: iconv"),
    "frame.jsonl.zst": (b"plain", r"cannot be decompressed \(.*\); it is damaged"),
}


@pytest.mark.parametrize("name", CASES)
def test_faults_are_told_in_a_line(tmp_path, name):
    content, expected = CASES[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refused(tmp_path / name)
    assert re.search(expected, message), message


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".csv", ".fa"])
def test_a_file_that_is_cut_off_is_refused(tmp_path, suffix, kind):
    lines = {".txt": "line %d\n", ".jsonl": '{"text": "%d"}\n', ".csv": "%d,a\n", ".fa": "ACGT\n"}[kind]
    head = {".csv": "n,text\n", ".fa": ">a\n"}.get(kind, "")
    content = head + "".join(lines % i if "%" in lines else lines for i in range(20_000))
    packed = COMPRESS[suffix](content.encode())
    for kept in (len(packed) // 2, len(packed) - 1):
        (tmp_path / f"x{kind}{suffix}").write_bytes(packed[:kept])
        assert "cannot be decompressed (" in refused(tmp_path / f"x{kind}{suffix}")


def test_all_frames_of_a_zst_are_read(tmp_path):
    frames = [COMPRESS[".zst"](f'{{"text": "{i}"}}\n'.encode()) for i in range(300)]
    (tmp_path / "x.jsonl.zst").write_bytes(b"".join(frames))
    assert read(tmp_path / "x.jsonl.zst") == [str(i) for i in range(300)]


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".csv", ".fa"])
def test_a_bomb_is_refused_before_it_is_large(tmp_path, monkeypatch, suffix, kind):
    monkeypatch.setattr(files, "EXPANSION_FREE", 1 << 20)
    head = {".csv": b"n,text\n1,", ".fa": b">a\n", ".jsonl": b'{"text": "'}.get(kind, b"")
    (tmp_path / f"x{kind}{suffix}").write_bytes(COMPRESS[suffix](head + b"A" * (8 << 20)))
    assert "expands to more than 250 times its size" in refused(tmp_path / f"x{kind}{suffix}")


def test_a_large_compressed_text_does_not_go_to_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "IN_MEMORY", 1 << 16)
    text = "".join(f"line {i}\n" for i in range(50_000))
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(text.encode()))
    with files.mapped(tmp_path / "x.txt.gz") as mapped:
        assert not isinstance(mapped, bytes) and mapped[:] == text.encode()
    (tmp_path / "y.txt").write_bytes(text.encode("utf-16"))
    with files.mapped(tmp_path / "y.txt") as mapped:
        assert not isinstance(mapped, bytes) and mapped[:] == text.encode()


def test_sequences_are_cut_and_nothing_but_letters_counts(tmp_path):
    whole = "ACGTN" * 5000
    wrapped = "\r\n".join(whole[i : i + 60] for i in range(0, len(whole), 60))
    (tmp_path / "x.fa").write_text(f">chr1 long\r\n{wrapped}\r\n>chr2\r\nAC\r\n", newline="")
    documents = list(sources.source(data_config(path=str(tmp_path / "x.fa")).data).read())
    assert "".join(document.text for document in documents) == whole + "AC"
    places = ["chr1:1-8192", "chr1:8193-16384", "chr1:16385-24576", "chr1:24577-25000", "chr2:1-2"]
    assert [document.id for document in documents] == places
    corpus = data.corpus(data_config(path=str(tmp_path / "x.fa"), tokenizer="nucleotide", validation_every=0).data)
    assert corpus.train_bytes == 25_002 and corpus.lossy is None
    assert int(max(ids.max() for ids in corpus.train)) == corpus.tokenizer.boundary == 18


def test_a_sequence_and_a_header_longer_than_a_buffer(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BUFFER", 16)
    (tmp_path / "x.fa").write_text(">name and ACGT that is no sequence\n" + "ACGT" * 20 + "\n>b" + "GG" * 20 + "\nTT\n")
    assert read(tmp_path / "x.fa") == ["ACGT" * 20, "TT"]


def test_the_nucleotide_tokenizer_refuses_what_it_cannot_hold(tmp_path):
    tokenizer = data.tokenizer(data_config(tokenizer="nucleotide").data)
    text = "ACGTNRYKMSWBDHVU-*"
    ids = tokenizer.encode(text)
    assert ids.tolist() == list(range(18)) and tokenizer.decode([tokenizer.boundary, *ids]) == text
    stream = tokenizer.stream()
    assert "".join(map(stream.push, [*ids, tokenizer.boundary])) + stream.finish() == text
    (tmp_path / "x.jsonl").write_text('{"text": "ACé"}\n')
    with pytest.raises(UserError, match="'é' is not a letter of a nucleotide sequence"):
        data.corpus(data_config(path=str(tmp_path / "x.jsonl"), tokenizer="nucleotide").data)
    import tokenizers

    saved = tokenizers.Tokenizer.from_str(tokenizer.file()[1].decode())
    assert saved.encode(text).ids == [18, *ids] and saved.decode(saved.encode(text).ids) == text


@pytest.fixture
def bpe(tmp_path):
    """A trained tokenizer, and what nanoGPT's prepare.py writes with it: ids of documents with the end of text between."""
    texts = [f"the cat sat on mat number {i}, é" for i in range(40)]
    training.train(texts, 280, tmp_path / "bpe.json")
    tokenizer = data.JsonTokenizer(tmp_path / "bpe.json")
    (tmp_path / "nano").mkdir()
    for name, some in {"train": texts[:30], "val": texts[30:]}.items():
        ids = np.concatenate([[*tokenizer.encode(text), tokenizer.boundary] for text in some])
        ids.astype("<u2").tofile(tmp_path / "nano" / f"{name}.bin")
    (tmp_path / "nano" / "prepare.py").write_text("raise SystemExit\n")
    (tmp_path / "nano" / "meta.pkl").write_bytes(b"\x80\x04")
    return str(tmp_path / "bpe.json"), texts


def test_token_ids_of_nanogpt_are_documents(tmp_path, bpe, capsys):
    tokenizer, texts = bpe
    corpus = data.corpus(data_config(path=str(tmp_path / "nano"), tokenizer=tokenizer).data)
    assert [corpus.tokenizer.decode(ids) for ids in corpus.train] == texts[:30]
    assert [corpus.tokenizer.decode(ids) for ids in corpus.validation] == texts[30:]
    assert corpus.train_bytes == sum(len(text.encode()) for text in texts[:30])
    assert "meta.pkl, prepare.py (no split in the name" in capsys.readouterr().err


def test_token_ids_of_another_tokenizer_are_refused(tmp_path, bpe):
    np.asarray([1, 2, 50_000], "<u2").tofile(tmp_path / "x.bin")
    assert "has the token id 50000" in refused(tmp_path / "x.bin", tokenizer=bpe[0])
    (tmp_path / "x.bin").write_bytes(b"abc")
    assert "has 3 bytes, so it does not hold uint16 ids" in refused(tmp_path / "x.bin", tokenizer=bpe[0])
    for name in ("meta.pkl", "prepare.py"):
        (tmp_path / "nano" / name).unlink()
    assert "it skips train.bin, val.bin (token ids; set data.tokenizer to the file" in refused(tmp_path / "nano")


def test_long_token_ids_are_cut(tmp_path, bpe, monkeypatch):
    monkeypatch.setattr("jaxseq.data.readers.tokens.PIECE_BYTES", 100)
    np.full(1050, 7, "<u2").tofile(tmp_path / "x.bin")
    corpus = data.corpus(data_config(path=str(tmp_path / "x.bin"), tokenizer=bpe[0], validation_every=0).data)
    assert sorted(corpus.train.lengths) == [51, *[101] * 10]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_damaged_table_is_told_in_a_line(tmp_path, suffix):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": [f"text {i} " * 50 for i in range(3000)]})
    path = tmp_path / f"x.{suffix}"
    if suffix == "parquet":
        parquet.write_table(table, path)
    else:
        with pyarrow.OSFile(str(path), "wb") as out, pyarrow.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=100)
    assert len(read(path)) == 3000
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"garbage", b"", whole[:4] + b"\xff" * 400 + whole[404:]):
        path.write_bytes(damaged)
        assert "is not a table from row " in refused(path)
    path.write_bytes(whole)
    assert "has no column 'body' (it has: text); set data.field" in refused(path, field="body")
    nothing = pyarrow.table({"text": ["a", None]})
    parquet.write_table(nothing, tmp_path / "null.parquet")
    assert "row 1: 'text' is null" in refused(tmp_path / "null.parquet")


def test_a_pipe_or_a_device_is_not_opened(tmp_path):
    for name in ("x.jsonl", "x.txt", "x.csv", "x.fa", "x.npz", "x.parquet", "x.bin", "x.json"):
        os.mkfifo(tmp_path / name)
        (tmp_path / f"device-{name}").symlink_to("/dev/zero")
        for path in (tmp_path / name, tmp_path / f"device-{name}"):
            assert "is a pipe, socket or device, not a file; give a regular file" in refused(path)
