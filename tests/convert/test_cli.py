"""`jaxseq import` and `jaxseq export`: from a folder of weights to a workdir and back."""

import json

import numpy as np
import pytest
from helpers.convert import oracle
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models

from jaxseq import cli


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    parts = oracle("llama")
    (folder / "config.json").write_text(json.dumps(parts["config"]))
    save_file(parts["param"], folder / "model.safetensors")
    words = {"<eos>": 0} | {chr(97 + i): i + 1 for i in range(26)}
    Tokenizer(models.WordLevel(words, unk_token="<eos>")).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def workdir(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("imported") / "run"
    assert cli.main(["import", str(source), str(path)]) == 0
    return path


def test_generate_with_its_tokenizer(workdir, capsys):
    assert cli.main(["generate", f"--workdir={workdir}", "--prompt=a", "--max_tokens=3", "--temperature=0", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["tokens"][0]) == 3 and max(result["tokens"][0]) < 61


def test_export_gives_the_same_file(workdir, tmp_path, capsys):
    assert cli.main(["export", str(workdir), str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["source"] == "hf/llama"
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert sorted(written) == sorted(oracle("llama")["param"])
    for name, value in oracle("llama")["param"].items():
        np.testing.assert_array_equal(written[name], value)


@pytest.mark.parametrize(
    "words, message",
    [
        (["import", "{source}", "{source}"], "is not empty"),
        (["import", "{tmp}/nowhere", "{tmp}/out"], "there is no"),
        (["import", "{source}", "{tmp}/out", "--source=hf/lama"], "there is no source 'hf/lama'"),
        (["import", "{source}", "{tmp}/out", "--tokenizer={tmp}/none.json"], "there is no tokenizer"),
        (["export", "{tmp}", "{tmp}/out"], "no config.json"),
        (["export", "{workdir}", "{tmp}/out", "--source=blinkdl/rwkv4"], "cannot hold this model"),
    ],
)
def test_errors_are_one_line(words, message, source, workdir, tmp_path, capsys):
    words = [word.format(source=source, workdir=workdir, tmp=tmp_path) for word in words]
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
