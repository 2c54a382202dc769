"""tokenizer.model alone, and vocab.json with merges.txt: the ids of transformers and sentencepiece, or an error of one line."""

import json
import shutil

import pytest
from helpers.places import FILES

from jaxseq import data
from jaxseq.convert import _vocabularies
from jaxseq.errors import UserError

HERE = FILES / "tokenizers"
TEXTS = json.loads((HERE / "ids.json").read_text("utf-8"))["texts"]
TYPES = {"gpt2_parts": "gpt2", "llama_model": "llama"}


@pytest.fixture
def folder(tmp_path):
    """folder(name): a copy of that folder of tests/files/tokenizers, with the given files replaced."""

    def make(name, **files):
        shutil.copytree(HERE / name, tmp_path / name)
        for file, content in files.items():
            path = tmp_path / name / file.replace("__", ".")
            path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)
        return tmp_path / name

    return make


def opened(folder, name):
    if name == "llama_model":
        pytest.importorskip("sentencepiece", reason="sentencepiece is not installed: pip install 'jaxseq[sentencepiece]'")
    text, why = _vocabularies.made(folder, TYPES[name])
    assert text and not why
    (folder / "tokenizer.json").write_text(text)
    return data.JsonTokenizer(folder / "tokenizer.json")


@pytest.mark.parametrize("name", TYPES)
def test_ids_are_those_of_transformers(folder, name):
    wanted = json.loads((HERE / name / "ids.json").read_text())
    tokenizer = opened(folder(name), name)
    # transformers 5 omits the space that SentencePiece puts before a space; jaxseq follows SentencePiece.
    alike = [at for at in range(len(TEXTS)) if wanted["plain"][at] == wanted.get("sentencepiece", wanted["plain"])[at]]
    assert len(alike) >= 8
    for at, text in enumerate(TEXTS):
        plain = tokenizer.encode(text, special=True).tolist()
        if at in alike:
            assert plain == wanted["plain"][at], text
            assert not text or [*tokenizer.begin, *plain] == wanted["prompt"][at], text
        if "sentencepiece" in wanted and "<" not in text:
            assert tokenizer.encode(text).tolist() == wanted["sentencepiece"][at], text
        if "<" not in text:
            assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.boundary == tokenizer.find("</s>" if name == "llama_model" else "<|endoftext|>")


def test_tokens_that_were_added_behind_the_vocabulary_are_kept(folder):
    config = {"added_tokens_decoder": {"340": {"content": "<|chat|>", "special": True}}, "tokenizer_class": "GPT2Tokenizer"}
    tokenizer = opened(folder("gpt2_parts", tokenizer_config__json=json.dumps(config)), "gpt2_parts")
    assert tokenizer.find("<|chat|>") == 340 and tokenizer.vocab == 341


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"merges__txt": "#version: 0.2\na b c\n"}, "merges.txt has the line 'a b c'"),
        ({"merges__txt": b"\xff\xfe"}, "merges.txt is not UTF-8"),
        ({"vocab__json": '{"a": 0, "b": 0}'}, "vocab.json does not give the words distinct ids"),
        ({"vocab__json": "[]"}, "vocab.json does not give the words distinct ids"),
        ({"added_tokens__json": '{"<x>": 5}'}, "another word's id"),
    ],
)
def test_damaged_parts_are_one_line(folder, files, words):
    with pytest.raises(UserError, match=words):
        _vocabularies.made(folder("gpt2_parts", **files), "gpt2")


def test_a_damaged_model_is_one_line(folder):
    pytest.importorskip("sentencepiece")
    with pytest.raises(UserError, match="is not a SentencePiece model"):
        _vocabularies.made(folder("llama_model", tokenizer__model=b"garbage"), "llama")


def test_what_is_not_read_names_the_remedy(folder, tmp_path):
    remedy = "makes a tokenizer.json from it"
    text, why = _vocabularies.made(folder("gpt2_parts", tokenizer_config__json='{"tokenizer_class": "CLIPTokenizer"}'), "clip")
    assert text is None and "of CLIPTokenizer are not read" in why and remedy in why
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "vocab.txt").write_text("[CLS]\n")
    text, why = _vocabularies.made(tmp_path / "bert", "bert")
    assert text is None and why.startswith("vocab.txt alone is not read") and remedy in why
    assert _vocabularies.made(tmp_path, "x") == (None, "there is none next to the weights")


def test_a_sentencepiece_model_of_another_kind_names_the_remedy(folder):
    proto = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    here = folder("llama_model")
    for field, value, words in (("model_type", 1, "a UNIGRAM model"), ("treat_whitespace_as_suffix", True, "as suffixes")):
        model = proto.ModelProto.FromString((HERE / "llama_model" / "tokenizer.model").read_bytes())
        setattr(model.trainer_spec, field, value)
        (here / "tokenizer.model").write_bytes(model.SerializeToString())
        text, why = _vocabularies.made(here, "llama")
        assert text is None and words in why and "makes a tokenizer.json from it" in why
