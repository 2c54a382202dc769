"""User errors on the command line: one line that says what is wrong and how to fix it, exit status 2."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxseq import registry
from jaxseq.cli import main

SMALL = ["--config.model.stack=1*(retention mlp)", "--config.model.width=16", "--config.train.steps=1", "--config.train.warmup=0",
         "--config.train.batch=2", "--config.train.length=32", "--config.eval.documents=1"]  # fmt: skip


@pytest.fixture
def fails(capsys):
    """Runs a command that must fail with status 2 and one line; returns the line."""

    def run(*argv):
        status = main([str(word) for word in argv])
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if line.startswith("jaxseq: ")]
        assert status == 2, err
        assert out == "" and len(lines) == 1, err
        assert "Traceback" not in err
        return lines[0]

    return run


@pytest.fixture
def train(fails, tmp_path):
    return lambda *words: fails("train", "--config=retnet", *SMALL, f"--workdir={tmp_path / 'run'}", *words)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "COMMAND"),
        (["tarin"], "train"),
        (["train", "--config=retnet"], "--workdir"),
        (["train", "--workdir=x", "--config.train.warmup=2000"], "train.warmup"),
        (["train", "--config=retnett", "--workdir=x"], "retnet"),
        (["train", "--config=retnet:9b", "--workdir=x"], "1.3b"),
        (["train", "--config=configs/none.py", "--workdir=x"], "none.py"),
        (["train", "--config=retnet", "--workdir=x", "--steps=3"], "--steps"),
        (["train", "--config=retnet", "--workdir=x", "--config.train.steps"], "--config.train.steps=VALUE"),
        (["train", "--config=retnet", "--workdir=x", "--config.train.step=3"], "'steps'"),
        (["train", "--config=retnet", "--workdir=x", "--config.trian.steps=3"], "'train'"),
        (["train", "--config=retnet", "--workdir=x", "--config.train.steps=many"], "int"),
        (["train", "--config=retnet", "--workdir=x", "--config.train=3"], "section"),
        (["train", "--config=retnet", "--workdir=x", "--config.model.stack=4(retention)"], "4*("),
        (["train", "--config=retnet", "--workdir=x", "--config.model.stack=4*(retentoin)"], "retention"),
        (["compare", "--architectures=mambo"], "mamba"),
        (["generate", "--workdir=nowhere", "--prompt=a"], "nowhere"),
        (["eval", "--workdir=nowhere"], "nowhere"),
        (["report", "--results=nowhere"], "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_words_that_are_wrong(fails, tmp_path, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    assert words in fails(*argv)
    assert not list(tmp_path.rglob("*")), "a refused command leaves nothing behind"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--config.model.retention.heads=3", "heads"),
        ("--config.model.retention.heads=16", "even"),
        ("--config.model.retention.decay=slow", "published"),
        ("--config.model.norm=batchnorm", "rmsnorm"),
        ("--config.model.dtype=float8", "bfloat16"),
        ("--config.train.accumulate=3", "train.accumulate"),
        ("--config.train.batch=0", "train.batch"),
        ("--config.train.length=0", "train.length"),
        ("--config.train.warmup=9", "train.warmup"),
        ("--config.train.lr=0", "train.lr"),
        ("--config.train.schedule=cosin", "cosine"),
        ("--config.train.objective=next", "next_token"),
        ("--config.train.form=fast", "chunkwise"),
        ("--config.mesh.data=3", "mesh"),
        ("--config.data.source=web", "sotu"),
        ("--config.data.tokenizer=none.json", "none.json"),
        ("--config.train.init=nowhere", "nowhere"),
    ],
)
def test_values_that_are_wrong(train, option, words):
    assert words in train(option)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.txt", None, "missing.txt"),
        ("empty.txt", b"", "empty"),
        ("binary.txt", bytes(range(256)) * 8, "binary.txt"),
        ("latin.txt", "Résumé of the state. ".encode("latin-1") * 99, "UTF-8"),
        ("half.jsonl", b'{"text": "a"}\n{"text": \n', "line 2"),
        ("fields.jsonl", b'{"body": "a"}\n' * 50, "text"),
        ("short.jsonl", b'{"text": "a"}\n', "too few"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_files_that_are_wrong(train, tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert words in train(f"--config.data.path={path}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    assert main(["train", "--config=retnet", *SMALL, f"--workdir={workdir}"]) == 0
    return workdir


def snapshot(folder: Path):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_checkpoint_of_another_config(fails, trained):
    before = snapshot(trained / "checkpoints")
    line = fails("train", "--config=retnet", *SMALL, f"--workdir={trained}", "--config.model.width=32", "--config.train.lr=1e-4")
    assert "model.width" in line and "train.lr" in line and "--workdir" in line
    assert snapshot(trained / "checkpoints") == before, "nothing of the old run is lost"


def test_a_prompt_that_is_not_utf8(fails, trained, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert "UTF-8" in fails("generate", f"--workdir={trained}", f"--prompt_file={tmp_path / 'latin.txt'}")


def test_a_config_that_is_no_config(fails, trained, tmp_path):
    (tmp_path / "config.json").write_text('{"model": {"stack": "__import__(\'os\').system(\'touch pwned\')"}}')
    assert str(tmp_path / "config.json") in fails("eval", f"--workdir={tmp_path}")


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 99}', '{"model": {"width": "wide"}}', '{"modle": {}}'])
def test_every_command_refuses_a_damaged_config_of_a_run_and_keeps_all_files(fails, trained, tmp_path, content):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "config.json").write_text(content)
    before, checkpoint = snapshot(run), next((run / "checkpoints").glob("*/config/metadata"))
    for command in [
        ["train", f"--workdir={run}"], ["train", "--config=retnet", *SMALL, f"--workdir={run}"],
        ["train", f"--config={run}", f"--workdir={tmp_path / 'new'}"],
        ["train", "--config=retnet", *SMALL, f"--config.train.init={run}", f"--workdir={tmp_path / 'new'}"],
        ["eval", f"--workdir={run}"], ["generate", f"--workdir={run}", "--prompt=a"], ["export", run, tmp_path / "new"],
        ["modal", f"--workdir={run}", f"--out={tmp_path / 'new'}"],
        ["compress", f"--workdir={run}", "--recipe=int8", f"--out={tmp_path / 'new'}"],
    ]:  # fmt: skip
        line = fails(*command)
        assert str(run / "config.json") in line and str(checkpoint) in line, (command, line)
        assert snapshot(run) == before and not (tmp_path / "new").exists(), command
    shutil.copy(checkpoint, run / "config.json")
    assert main(["eval", f"--workdir={run}"]) == 0


@pytest.mark.parametrize(
    ("error", "where"),
    [(OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl"), "metrics.jsonl"),
     (ValueError("RESOURCE_EXHAUSTED: Error writing local file: No space left on device [os_error_code='28']"), "while writing"),
     (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "while writing")],
)  # fmt: skip
def test_a_full_disk_is_status_1_in_one_line(error, where, monkeypatch, capsys):
    """For every command, also if Orbax or safetensors raises the error."""

    def full(args):
        raise error

    monkeypatch.setattr(registry.load("cli", "list"), "run", full)
    assert main(["list"]) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and f"the disk is full ({where})" in err


def test_a_folder_that_cannot_be_written_is_refused_first(fails, tmp_path):
    """Before the weights to import or export are read."""
    (tmp_path / "file").write_text("")
    new = tmp_path / "file" / "new"
    for command in (["import", "nowhere", new], ["export", "nowhere", new], ["modal", "--workdir=nowhere", f"--out={new}"]):
        assert "is a file or inside a file; choose a folder" in fails(*command)


def test_json_is_one_document(trained, capsys):
    assert main(["eval", f"--workdir={trained}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bits_per_byte"] > 0


@pytest.mark.parametrize("value", [float("inf"), float("nan"), np.float32("-inf")])
def test_numbers_that_json_lacks_are_printed_as_json(value, monkeypatch, capsys):
    monkeypatch.setattr(registry.load("cli", "list"), "run", lambda args: {"perplexity": [value, np.float32(0.5)]})
    assert main(["list", "--json"]) == 0
    result = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert result["perplexity"][0].keys() == {"__float__"} and result["perplexity"][1] == 0.5
