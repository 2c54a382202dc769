"""Folders: splits by name, kinds of files, links, and the report of skipped files."""

import gzip
import itertools
import json
import os

import pytest
from helpers.data import data_config, write_jsonl

from jaxseq import data
from jaxseq.data import files, folders, sources, splits
from jaxseq.errors import UserError


def lines(*texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def put(root, contents):
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def read(root, split="train", **overrides):
    opened = sources.source(data_config(path=str(root), **overrides).data)
    opened = opened if split == "train" else opened.validation
    return [document.text for document in opened.read()] if opened else []


def corpus_texts(root, **overrides):
    corpus = data.corpus(data_config(path=str(root), **overrides).data)
    return tuple([corpus.tokenizer.decode(ids) for ids in split] for split in (corpus.train, corpus.validation))


# Split names.


def test_split_names_are_those_of_the_datasets_library():
    patterns = pytest.importorskip("datasets.data_files")
    theirs = {str(split): tuple(sorted(words)) for split, words in patterns.SPLIT_KEYWORDS.items()}
    assert {split: tuple(sorted(words)) for split, words in splits.KEYWORDS.items()} == theirs


@pytest.mark.parametrize("place", ["folder", "name"])
def test_files_go_where_the_datasets_library_puts_them(tmp_path, monkeypatch, place):
    """As in the datasets library, one set of patterns applies to a whole folder: folder names, else file names."""
    patterns = pytest.importorskip("datasets.data_files")
    words = ["train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation", "latest",
             "values", "trained", "devil", "x"]  # fmt: skip
    forms = ["{}", "a-{}", "{}_b", "a.{}.b", "{}-00000-of-00001", "v2 {}", "{}1", "1{}"]
    names = [form.format(word) for form, word in itertools.product(forms, words)]
    put(tmp_path, {f"{name}/x.txt" if place == "folder" else f"{name}.txt": "x" for name in names})
    monkeypatch.chdir(tmp_path)
    theirs = {}
    found = patterns.get_data_patterns(str(tmp_path))
    for split, globs in found.items():
        for glob in globs:
            for path in patterns.resolve_pattern(glob, str(tmp_path)):
                theirs.setdefault(os.path.relpath(path, tmp_path), set()).add(str(split))
    for path in folders.walk(tmp_path):
        name = path.relative_to(tmp_path)
        assert {splits.split_of(name)} - {None} == theirs.get(str(name), set()), name


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "validation.jsonl", "test.jsonl"),
        ("data/train-00000-of-00001.jsonl", "data/dev-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"),
        ("training/a.jsonl", "valid/a.jsonl", "eval/a.jsonl"),
        ("my_train.JSONL", "my_val.jsonl", "my.testing.jsonl.gz"),
        ("a.jsonl", "val.jsonl", "test.jsonl"),
    ],
)
def test_splits_in_a_folder_are_kept_apart(tmp_path, capsys, names):
    contents = dict(zip(names, [lines("a", "b"), lines("c"), lines("d", "e")], strict=True))
    contents = {name: gzip.compress(text.encode()) if name.endswith(".gz") else text for name, text in contents.items()}
    put(tmp_path, contents | {"README.md": "about", "dataset_infos.json": "{}"})
    assert corpus_texts(tmp_path) == (["a", "b"], ["c"])
    said = capsys.readouterr().err
    assert f"skips README.md (about the data); skips {names[2]} (test split)" in said
    assert "validates on 1 file(s)" in said
    assert list(data.texts(data_config(path=str(tmp_path)).data, "validation"))[0].text == "c"
    assert [document.text for document in data.texts(data_config(path=str(tmp_path)).data)] == ["a", "b"]


def test_a_test_split_is_no_validation_split(tmp_path):
    put(tmp_path, {"train.jsonl": lines(*"abcd"), "test.jsonl": lines("e")})
    assert corpus_texts(tmp_path, validation_every=2) == (["a", "c"], ["b", "d"])


def test_what_has_no_split_in_its_name_is_left_out_beside_train(tmp_path, capsys):
    put(tmp_path, {"train.txt": "a", "notes.txt": "b"})
    assert read(tmp_path) == ["a"]
    assert "notes.txt (no split in the name, others are train)" in capsys.readouterr().err


def test_a_folder_of_one_split_is_read_as_what_it_holds(tmp_path, capsys):
    put(tmp_path / "one", {"test/a.txt": "a"})
    assert read(tmp_path / "one") == ["a"]
    put(tmp_path / "two", {"test/a.txt": "a", "val/a.txt": "b"})
    with pytest.raises(UserError, match="holds validation and test files and none of train; name one file or its folder"):
        read(tmp_path / "two")


@pytest.mark.parametrize("kind", ["parquet", "arrow", "saved"])
def test_tables_of_several_splits(tmp_path, kind):
    pytest.importorskip("pyarrow")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    names = ("train", "validation", "test")
    tables = {name: datasets.Dataset.from_dict({"text": [f"{name} {i}" for i in range(3)]}) for name in names}
    if kind == "saved":
        datasets.DatasetDict(tables).save_to_disk(str(tmp_path / "x"))
        (tmp_path / "x" / "train" / "data-00000-of-00009.arrow").write_bytes(b"left behind by an earlier save")
    else:
        (tmp_path / "x").mkdir()
        for name, table in tables.items():
            if kind == "parquet":
                table.to_parquet(str(tmp_path / "x" / f"{name}-00000-of-00001.parquet"))
            else:
                table.save_to_disk(str(tmp_path / "made" / name))
                (tmp_path / "made" / name / "data-00000-of-00001.arrow").rename(tmp_path / "x" / f"set-{name}.arrow")
        (tmp_path / "x" / "cache-0123.arrow").write_bytes(b"of map()")
    assert corpus_texts(tmp_path / "x") == ([f"train {i}" for i in range(3)], [f"validation {i}" for i in range(3)])


# Files.


def test_linked_folders_are_read_once(tmp_path, capsys):
    put(tmp_path / "elsewhere", {"a.txt": "a", "deep/b.txt": "b"})
    put(tmp_path / "x", {"c.txt": "c"})
    (tmp_path / "x" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "x")  # a cycle
    (tmp_path / "x" / "again.txt").symlink_to(tmp_path / "x" / "c.txt")
    (tmp_path / "x" / "gone.txt").symlink_to(tmp_path / "nowhere")
    assert sorted(read(tmp_path / "x", validation_every=0)) == ["a", "b", "c"]
    said = capsys.readouterr().err
    assert "gone.txt (broken link)" in said and "(the same file as again.txt)" in said


def test_pipes_and_devices_are_not_opened(tmp_path, capsys):
    put(tmp_path / "x", {"a.txt": "a"})
    os.mkfifo(tmp_path / "x" / "b.txt")
    (tmp_path / "x" / "c.jsonl").symlink_to("/dev/zero")
    assert read(tmp_path / "x", validation_every=0) == ["a"]
    assert "b.txt, c.jsonl (no regular file)" in capsys.readouterr().err
    for name in ("b.txt", "c.jsonl"):
        with pytest.raises(UserError, match="is a pipe, socket or device, not a file; give a regular file"):
            read(tmp_path / "x" / name)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv"])
def test_wide_encodings_are_read_as_text(tmp_path, encoding, suffix):
    content = {"txt": "é日😀\n", "jsonl": json.dumps({"text": "é日😀\n"}, ensure_ascii=False), "csv": 'text\n"é日😀\n"\n'}[suffix]
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    for place in ("folder/x", "x"):
        put(tmp_path, {f"{place}.{suffix}": (mark + content).encode(encoding)})
    assert read(tmp_path / "folder", validation_every=0) == ["é日😀\n"]
    assert "".join(read(tmp_path / f"x.{suffix}", validation_every=0)) == "é日😀\n"


def test_json_in_a_folder_is_records_where_it_holds_records(tmp_path):
    put(
        tmp_path,
        {
            "lines.json": lines("a", "b"),
            "array.json": json.dumps([{"text": "c"}, {"text": "d"}], indent=1),
            "one.json": lines("e"),
            "settings.json": '{"name": "x"}\n',
            "pretty.json": '{\n "name": "y"\n}\n',
        },
    )
    assert sorted(read(tmp_path)) == ["a", "b", "c", "d", "e", '{\n "name": "y"\n}\n', '{"name": "x"}\n']
    put(tmp_path / "wrong", {"lines.json": '{"body": "a"}\n{"body": "b"}\n'})
    with pytest.raises(UserError, match=r"line 1 has no field 'text' \(it has: body\); set data.field"):
        read(tmp_path / "wrong")


def test_a_mixture_of_kinds_is_listed_before_it_is_read(tmp_path, capsys):
    put(tmp_path, {"a.txt": "a", "b.jsonl": "no json", "c.png": b"\x89PNG\0"})
    opened = sources.source(data_config(path=str(tmp_path)).data)
    said = capsys.readouterr().err
    assert "trains on 3 file(s) (1 of jsonl, 2 of text: a.txt, b.jsonl, c.png)" in said
    put(tmp_path, {"b.jsonl": lines("b")})
    assert [document.text for document in opened.read()] == ["a", "b"]
    assert "skipped c.png (binary)" in capsys.readouterr().err


def test_nothing_is_said_of_a_folder_of_one_kind(tmp_path, capsys):
    put(tmp_path, {"a.txt": "a", "README.md": "b"})
    assert sorted(read(tmp_path, validation_every=0)) == ["a", "b"]
    assert capsys.readouterr() == ("", "")


# Texts.


def test_a_folder_of_few_texts_is_cut_as_a_file_is(tmp_path):
    text = "a line of text\n" * 20_000  # 300 kB
    put(tmp_path / "one", {"book.txt": text})
    put(tmp_path, {"book.txt": text})
    assert read(tmp_path / "one") == read(tmp_path / "book.txt") and len(read(tmp_path / "one")) >= 20
    put(tmp_path / "many", {f"{i}.txt": text for i in range(30)})
    pieces = read(tmp_path / "many")
    assert "".join(pieces) == text * 30 and len(pieces) == 30 * 5 and max(map(len, pieces)) < (1 << 16) + 16
    assert read(tmp_path / "many", validation_every=0) == pieces


@pytest.mark.parametrize("place", ["file", "folder"])
def test_line_ends_around_end_of_text_are_no_text(tmp_path, place):
    """Documents do not depend on the line ends of the machine that the file was written on."""
    text = "One.\n\nStill one.\n<|endoftext|>\nTwo.\n<|endoftext|>\n\n<|endoftext|>Three.<|endoftext|>\n"
    found = []
    for end in ("\n", "\r\n"):
        root = tmp_path / f"{len(end)}"
        put(root, {"x.txt": text.replace("\n", end)})
        found.append([one.replace("\r\n", "\n") for one in read(root / "x.txt" if place == "file" else root, validation_every=0)])
    assert found[0] == found[1] == ["One.\n\nStill one.", "Two.", "Three."]


def test_validation_documents_that_are_trained_on_are_counted(tmp_path):
    put(tmp_path, {"train.jsonl": lines("a", "b", "c"), "val.jsonl": lines("c", "d", "a", "a")})
    for cache in (None, str(tmp_path / "cache")):
        assert data.corpus(data_config(path=str(tmp_path), cache=cache).data).duplicates == 3
    write_jsonl(tmp_path / "x.jsonl", ["a", "b", "c", "d"])
    assert data.corpus(data_config(path=str(tmp_path / "x.jsonl"), validation_every=2).data).duplicates == 0


def test_a_text_is_said_once(capsys):
    for _ in range(2):
        files.say("this [very] line")
    assert capsys.readouterr().err == "this [very] line\n"
