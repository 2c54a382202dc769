"""Tokenizers: round trips of text, boundaries only at the ends of documents, streams equal decoding at once."""

import numpy as np
import pytest
import tokenizers
from helpers.data import data_config, write_jsonl

from jaxseq import data
from jaxseq.data import bpe
from jaxseq.errors import UserError

TEXT = "The naïve café — 日本語 and 😀!\nA second line, the naïve one. "


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "deep" / "tokenizer.json"
    assert bpe.train([TEXT * 3, "the other document"], 300, path) == 300
    assert [file.name for file in path.parent.iterdir()] == ["tokenizer.json"]
    return path


@pytest.fixture(params=["byte", "bpe", "sentencepiece"])
def tokenizer(request, trained, tmp_path):
    if request.param == "sentencepiece":  # byte fallback, spaces as part of words: as Llama's
        words = ["▁The", "▁and", "▁the", "▁line", "▁", "A", "one"]
        vocab = {token: i for i, token in enumerate(["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256)), *words])}
        model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>"))
        model.normalizer = tokenizers.normalizers.Sequence(
            [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
        )
        decoders = tokenizers.decoders
        model.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        model.save(str(tmp_path / "sp.json"))
        return data.JsonTokenizer(tmp_path / "sp.json")
    return data.tokenizer(data_config(tokenizer="byte" if request.param == "byte" else str(trained)).data)


def test_text_comes_back(tokenizer):
    ids = tokenizer.encode(TEXT)
    assert ids.dtype == np.int32 and ids.min() >= 0 and ids.max() < tokenizer.vocab
    assert tokenizer.decode(ids) == TEXT == tokenizer.decode([tokenizer.boundary, *ids, tokenizer.boundary])
    np.testing.assert_array_equal(tokenizer.encode(TEXT.encode()), ids)
    (batch,) = tokenizer.encode_batch([TEXT])
    np.testing.assert_array_equal(batch, ids)
    assert batch.dtype == tokenizer.storage
    assert tokenizer.bytes_per_token([tokenizer.boundary, *ids]) == pytest.approx(len(TEXT.encode()) / len(ids))


def test_streams_agree_with_the_whole(tokenizer):
    text = f"{TEXT} Жя 語彙 🚀."  # partly in tokens for whole words, partly byte by byte
    stream, ids = tokenizer.stream(), tokenizer.encode(text).tolist()
    pieces = [stream.push(token) for token in [tokenizer.boundary, *ids]]
    assert "".join(pieces) == text and stream.finish() == ""
    assert not any("\ufffd" in piece for piece in pieces)
    assert "" in pieces[1:]  # inside a character
    half = "".join(pieces[: len(ids) // 2])
    assert text.startswith(half) and len(half) > len(text) // 8  # the text is produced incrementally


@pytest.mark.parametrize("tokenizer", ["byte", "bpe"], indirect=True)
def test_streams_agree_on_any_tokens(tokenizer):
    """Also for tokens that are not valid text (SentencePiece decodes a bad byte and the valid ones before it as U+FFFD)."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        ids = rng.integers(0, tokenizer.vocab, 40).tolist()
        stream = tokenizer.stream()
        assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids)


def test_an_unfinished_character_is_held_back_and_then_told(tokenizer):
    ids = tokenizer.encode("A日").tolist()
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids[:-1])).strip() == "A"
    assert set(stream.finish()) == {"\ufffd"}


def test_bytes():
    tokenizer = data.ByteTokenizer()
    assert (tokenizer.vocab, tokenizer.boundary) == (257, 256)
    np.testing.assert_array_equal(tokenizer.encode("é\0"), [0xC3, 0xA9, 0])
    assert tokenizer.decode([0xC3, 256, 0xA9, 0xFF]) == "é\ufffd"


def test_the_boundary_is_the_files_own_end_of_text(trained):
    tokenizer = data.JsonTokenizer(trained)
    assert tokenizer.vocab == 300
    assert tokenizer.boundary == tokenizers.Tokenizer.from_file(str(trained)).token_to_id("<|endoftext|>")


def test_a_text_that_spells_the_boundary_does_not_end_the_document(trained):
    tokenizer = data.JsonTokenizer(trained)
    ids = tokenizer.encode("a<|endoftext|>b")
    assert tokenizer.boundary not in ids and tokenizer.decode(ids) == "a<|endoftext|>b"


def test_without_an_end_of_text_one_id_is_added(tmp_path):
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 7}, unk_token="a"))
    model.save(str(tmp_path / "words.json"))
    tokenizer = data.JsonTokenizer(tmp_path / "words.json")
    assert (tokenizer.boundary, tokenizer.vocab) == (8, 9)


def test_truncation_padding_and_specials_of_the_file_are_off(trained, tmp_path):
    model = tokenizers.Tokenizer.from_file(str(trained))
    model.enable_truncation(3)
    model.enable_padding(length=50)
    end = model.token_to_id("<|endoftext|>")
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", end)]
    )
    model.save(str(tmp_path / "changed.json"))
    expected = data.JsonTokenizer(trained).encode(TEXT)
    np.testing.assert_array_equal(data.JsonTokenizer(tmp_path / "changed.json").encode(TEXT), expected)


def test_a_corpus_of_bpe_tokens(trained, tmp_path):
    path = write_jsonl(tmp_path / "corpus.jsonl", [f"{TEXT}{i}" for i in range(40)])
    config = data_config(path=path, tokenizer=str(trained), cache=str(tmp_path / "cache"))
    tokenizer = data.tokenizer(config.data)
    corpus = data.corpus(config.data, tokenizer)
    for i, (_, ids, n_bytes) in zip((19, 39), corpus.documents("validation"), strict=True):
        assert ids[0] == tokenizer.boundary and tokenizer.decode(ids) == f"{TEXT}{i}"
        assert n_bytes == len(f"{TEXT}{i}".encode())
    batch = next(data.batches(config, corpus))
    np.testing.assert_array_equal((batch["tokens"] == tokenizer.boundary)[:, 1:], (batch["pos"] <= 0)[:, 1:])
    other = data.corpus(data_config(path=path, cache=str(tmp_path / "cache")).data)
    assert other.fingerprint != corpus.fingerprint and len(list((tmp_path / "cache").iterdir())) == 2


def test_bpe_is_trained_on_training_documents_alone(tmp_path):
    path = write_jsonl(tmp_path / "corpus.jsonl", ["abab" * 9, "zqzq" * 9] * 4)
    config = data_config(path=path, validation_every=2)
    assert {document.text[0] for document in data.texts(config.data)} == {"a"}
    assert {document.text[0] for document in data.texts(config.data, "validation")} == {"z"}


def test_bpe_of_text_without_spaces(tmp_path):
    text = "".join(np.random.default_rng(0).choice(list("ACGT"), 100_000))
    assert bpe.train([text], 280, tmp_path / "dna.json") == 280
    tokenizer = data.JsonTokenizer(tmp_path / "dna.json")
    assert tokenizer.decode(tokenizer.encode(text[:1000])) == text[:1000]


def test_bpe_that_cannot_be_trained(tmp_path):
    with pytest.raises(UserError, match="a vocabulary of 256 cannot hold .*; set it to 257 or more"):
        bpe.train(["text"], 256, tmp_path / "x.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written \(.*\); give another --out"):
        bpe.train(["text"], 300, tmp_path / "file" / "x.json")


def test_bpe_in_a_path_that_is_not_utf8(tmp_path, trained):
    path = tmp_path / "caf\udce9.json"
    assert bpe.train([TEXT * 3, "the other document"], 300, path) == 300
    assert path.read_bytes() == trained.read_bytes()
    assert data.JsonTokenizer(path).decode(data.JsonTokenizer(trained).encode(TEXT)) == TEXT
