"""Bad input gets a one-line error that says what is wrong and how to fix it."""

import gzip
import os
import re

import pytest
from helpers.data import data_config, texts_of, write_jsonl

from jaxseq import data
from jaxseq.errors import UserError


def jsonl(*lines):
    return "\n".join(['{"text": "fine"}', *lines, '{"text": "fine"}']).encode()


CASES = {
    # name of the file: (content, overrides, what the message must say)
    "missing.txt": (None, {}, r"does not exist; give the path"),
    "empty.txt": (b"", {}, r"empty.txt has no text; give a source"),
    "empty.jsonl": (b"\n\n", {}, r"empty.jsonl has no text; give a source"),
    "blank.jsonl": (b'{"text": ""}', {}, r"blank.jsonl has no text; give a source"),
    "binary.txt": (b"ab\0c" * 100, {}, r"is a binary file \(byte 2 is NUL\); give UTF-8 text"),
    "latin.txt": (b"x" * 70_000 + b"\xe9", {}, r"not UTF-8 \(byte 70000 is 0xe9\); convert it: iconv -f"),
    "latin.jsonl": (
        jsonl().replace(b"fine", "fin\xe9".encode("latin1")),
        {},
        r"not UTF-8 \(byte 13 is 0xe9\); convert it",
    ),
    "late.jsonl": (
        jsonl('{"text": "\xe9"}').decode().encode("latin1"),
        {},
        r"not UTF-8 \(byte 27 is 0xe9\); convert it",
    ),
    "broken.jsonl": (jsonl('{"text": '), {}, r"line 2 is no JSON \(.*\); write one JSON object a line"),
    "array.json": (b'["a"]', {}, r"item 1 is no JSON object; write one an item"),
    "field.jsonl": (
        jsonl('{"body": "x", "n": 1}'),
        {},
        r"line 2 has no field 'text' \(it has: body, n\); set data.field",
    ),
    "number.jsonl": (jsonl('{"text": 3}'), {}, r"line 2: 'text' is int, not text; set data.field"),
    "damaged.jsonl.gz": (gzip.compress(b"x" * 1000)[:20], {}, r"cannot be decompressed \(.*\); it is damaged"),
    "not.jsonl.gz": (b"plain", {}, r"cannot be decompressed \(.*\); it is damaged"),
    "few.jsonl": (jsonl(), {}, r"has 2 document\(s\), too few for .*_every=20; set data.validation_every to at most 2"),
    "one.jsonl": (b'{"text": "x"}', {}, r"has 1 document\(s\), too few .*; give more documents"),
    "all.jsonl": (jsonl(), {"validation_every": 1}, r"validation_every=1 leaves nothing to train on; set 2 or more"),
    "source.jsonl": (jsonl(), {"source": "web"}, r"data.source='web' is unknown; choose one of csv, dna, fasta, folder"),
    "dna.jsonl": (jsonl(), {"source": "dna"}, r"data.source=dna is built in and takes no data.path; leave one"),
    "file.jsonl": (jsonl(), {"source": "folder"}, r"is a file; set data.source=text or jsonl"),
    "tokens.jsonl": (jsonl(), {"tokenizer": "nowhere.json"}, r"data.tokenizer=nowhere.json cannot be read \(No such"),
}


def refused(config):
    with pytest.raises(UserError) as caught:
        data.corpus(config.data)
    message = str(caught.value)
    assert "\n" not in message and "; " in message
    return message


@pytest.mark.parametrize("name", CASES)
def test_bad_files(tmp_path, name):
    content, overrides, expected = CASES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    message = refused(data_config(path=str(tmp_path / name), **overrides))
    assert re.search(expected, message), message


def test_bad_folders(tmp_path):
    assert "holds no file; put text files there" in refused(data_config(path=str(tmp_path)))
    assert "is a folder; set data.source=folder" in refused(data_config(path=str(tmp_path), source="text"))
    assert "is a folder; set data.source=folder" in refused(data_config(path=str(tmp_path), source="jsonl"))
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0")
    assert "has no text; give a source" in refused(data_config(path=str(tmp_path)))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "latin.txt").write_bytes(b"abc\xff")
    assert "sub/latin.txt is not UTF-8 (byte 3 is 0xff); convert it" in refused(data_config(path=str(tmp_path)))


@pytest.mark.parametrize("source", ["text", "jsonl", "folder", "huggingface"])
def test_a_source_of_files_needs_a_path(source):
    assert refused(data_config(source=source)) == f"data.source={source} needs a path; set data.path"


@pytest.mark.parametrize("content", [b"{}", b"not json", b"\xff\xfe", b'{"version": "1.0"}'])
def test_an_unreadable_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    message = refused(data_config(tokenizer=str(tmp_path / "tokenizer.json")))
    assert "is not a tokenizers JSON file (" in message and message.endswith("make one with `jaxseq tokenizer`")


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    config = data_config(source="dna", cache=str(tmp_path / "file"))
    assert "cannot be written (" in (message := refused(config)) and message.endswith("set data.cache to another folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(tmp_path):
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / "x.txt").chmod(0)
    assert "cannot be read (Permission denied); check its permissions" in refused(data_config(path=str(tmp_path / "x.txt")))


def test_batches_that_cannot_be_made(tmp_path):
    path = write_jsonl(tmp_path / "corpus.jsonl", texts_of([9] * 20))
    corpus = data.corpus(data_config(path=path).data)
    with pytest.raises(UserError, match=r"train.batch=4 is not a multiple of the number of processes, 3; set it to one"):
        data.batches(data_config(path=path), corpus, 0, 3)
    with pytest.raises(UserError, match=r"data.seed=-1 is negative; set 0 or more"):
        data.batches(data_config(path=path, seed=-1), corpus)
    with pytest.raises(UserError, match=r"must both be at least 1; set them"):
        data.batches(data_config(path=path, train__length=0), corpus)


def test_splits_that_are_not_there(tmp_path):
    path = write_jsonl(tmp_path / "corpus.jsonl", ["x"])
    corpus = data.corpus(data_config(path=path, validation_every=0).data)
    with pytest.raises(UserError, match=r"has no validation documents; set data.validation_every"):
        list(corpus.documents("validation"))
    with pytest.raises(UserError, match=r"split 'test' is unknown; choose one of train, validation"):
        list(corpus.documents("test"))
