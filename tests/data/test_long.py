"""Long texts need bounded memory, and give the same ids and the same tokenizer as texts read at once."""

import json

import pytest
from helpers import fake_results
from helpers.data import data_config, lossy_tokenizer, write_jsonl
from helpers.places import FILES

from jaxseq import data
from jaxseq.compare import report
from jaxseq.compare.verdicts import verdicts
from jaxseq.data import bpe, long_text
from jaxseq.train.objectives.next_token import NextToken

HERE = FILES / "tokenizers"
TEXTS = json.loads((HERE / "ids.json").read_text("utf-8"))["texts"]
PROSE = "\n\n".join(f"{text}  {text}\t\n {number} {'word' * (number % 9)}" for number in range(12) for text in TEXTS)
SPACES = ("a" + " " * 250 + "b\n\n" * 30) * 9
RUNS = {"prose": PROSE, "no spaces": "語文字é" * 900, "spaces": SPACES, "digits": "0123456789" * 300}


@pytest.mark.parametrize("name", sorted(path.stem for path in HERE.glob("*.json") if path.stem != "ids"))
@pytest.mark.parametrize("run", RUNS)
def test_parts_give_the_tokens_of_the_whole(name, run, monkeypatch):
    tokenizer, text = data.JsonTokenizer(HERE / f"{name}.json"), RUNS[run]
    whole = tokenizer.encode_batch([text, "short"])
    monkeypatch.setattr(long_text, "WHOLE", 700)
    monkeypatch.setattr(long_text, "CONTEXT", 300)
    parts = tokenizer.encode_batch([text, "short"])
    assert [ids.tolist() for ids in parts] == [ids.tolist() for ids in whole]
    assert len(text) > 1400


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("size", [7, 100, 5000])
def test_pieces_are_the_text_and_begin_with_white_space(run, size):
    text = RUNS[run]
    pieces = list(bpe.pieces(text, size))
    assert "".join(pieces) == text and max(map(len, pieces)) <= size
    if run == "prose" and size >= 100:
        assert all(piece[0].isspace() for piece in pieces[1:])


def test_a_tokenizer_learns_the_same_of_pieces(tmp_path, monkeypatch):
    texts = ["".join(f"the cat {i % 37} sat on\nmat {i}\n\n" for i in range(2000))]
    bpe.train(texts, 400, tmp_path / "whole.json")
    monkeypatch.setattr(bpe.pieces, "__defaults__", (333,))
    bpe.train(texts, 400, tmp_path / "pieces.json")
    assert (tmp_path / "whole.json").read_text() == (tmp_path / "pieces.json").read_text()


def test_what_the_trainer_keeps_is_bounded_and_what_is_left_out_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bpe, "DISTINCT", 4000)
    words = [f"word{i}" for i in range(5000)]
    monkeypatch.setattr(bpe.pieces, "__defaults__", (500,))
    last = " ".join(["word1", *words[-50:], "word1"])
    bounded = bpe._Bounded([" ".join(words), last])
    given = list(bounded)
    assert 1000 < sum(map(len, set(" ".join(given).split()))) <= 4000 and given[-1] == "word1 word1"
    assert bounded.left + len("".join(given).replace(" ", "")) == len(("".join(words) + last).replace(" ", ""))
    bpe.train([" ".join(words)], 300, tmp_path / "x.json")
    assert "characters of rare words were left out of the training, to bound its memory" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["unknown", "dropped", "lower"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_lossy_tokenizer_is_told(tmp_path, change, cached):
    path = write_jsonl(tmp_path / "x.jsonl", ["The cat sat"] * 40)
    values = {"path": path, "tokenizer": lossy_tokenizer(tmp_path, change), "cache": str(tmp_path / "cache") if cached else None}
    for _ in range(2):
        found = data.corpus(data_config(**values).data).lossy
        assert found.startswith("'The cat sat' is read back as '")


@pytest.mark.parametrize("name", ["gpt2", "llama3", "llama2", "gemma"])
def test_tokenizers_that_keep_all_are_not_called_lossy(tmp_path, name):
    path = write_jsonl(tmp_path / "x.jsonl", ["The cat sat.\n", " A naïve café, 日本 😀", "x  y\t"] * 20)
    assert data.corpus(data_config(path=path, tokenizer=str(HERE / f"{name}.json")).data).lossy is None
    assert data.corpus(data_config(path=path).data).lossy is None


def test_bits_per_byte_under_a_lossy_tokenizer_are_marked_and_not_ranked():
    result = {"bits_per_byte": 0.068, "perplexity": 1.1, "documents": [], "bytes": 9, "lossy": "'é' is read back as '?'"}
    said = NextToken.describe(None, result)
    assert said.startswith("0.0680* bits/byte") and said.endswith("the tokenizer is lossy, 'é' is read back as '?'")
    assert "*" not in NextToken.describe(None, result | {"lossy": None})
    results = fake_results.results()
    assert verdicts(results)["ranking"]["tokens"] and verdicts(results)["pairs"]
    results["data"] = (results.get("data") or {}) | {"lossy": "'é' is read back as '?'"}
    found = verdicts(results)
    assert found["ranking"] == {"tokens": [], "time": []} and found["pairs"] == []
    assert "ranked by bits per byte: the tokenizer loses text ('é' is read back as '?')" in found["equal_tokens"][0]
    assert "the tokenizer loses text" in report.render(results)
