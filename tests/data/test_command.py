"""`jaxseq tokenizer`, from the arguments to a tokenizer file with which a corpus is read."""

import argparse

import pytest
from helpers.data import data_config, write_jsonl

from jaxseq import data
from jaxseq.cli import _config, tokenizer


@pytest.fixture
def run(monkeypatch):
    """Runs the command with these config values, without the built-in configs."""

    def call(arguments, **values):
        monkeypatch.setattr(_config, "load", lambda args: data_config(**values))
        parser = argparse.ArgumentParser()
        tokenizer.add_arguments(parser)
        return tokenizer.run(parser.parse_args(arguments))

    return call


def test_a_trained_tokenizer_reads_the_corpus(tmp_path, run, capsys):
    path = write_jsonl(tmp_path / "corpus.jsonl", [f"the cat sat on mat number {i}" for i in range(40)])
    out = tmp_path / "tokenizer.json"
    figures = run(["--vocab=280", f"--out={out}"], path=path)
    assert figures["vocab"] == 280 and figures["bytes_per_token"] > 2
    shown = capsys.readouterr()
    assert shown.out == "" and f"--config.data.tokenizer={out}" in shown.err
    corpus = data.corpus(data_config(path=path, tokenizer=str(out)).data)
    assert corpus.tokenizer.boundary == figures["boundary"]
    assert corpus.train_bytes / sum(len(ids) - 1 for ids in corpus.train) > 2


def test_a_vocabulary_that_the_corpus_cannot_fill_is_told(tmp_path, run, capsys):
    path = write_jsonl(tmp_path / "corpus.jsonl", ["abab"] * 20)
    figures = run(["--vocab=5000", f"--out={tmp_path / 'tokenizer.json'}"], path=path)
    assert figures["vocab"] < 270
    assert "--vocab=5000 was not reached" in capsys.readouterr().err
