"""The tokenizer of RWKV's World models on a small vocabulary of its format."""

import numpy as np
import pytest
from helpers.data import data_config

from jaxseq import data
from jaxseq.data.rwkv_world import WorldTokenizer
from jaxseq.errors import UserError

WORDS = ["the", " the", "then", "  ", "    ", "日本", "é", "\n\n", "it's", 'say "', "a\\b", "naïve", "\u3000"]
TEXT = 'the then  the naïve café — 日本語 and 😀!\n\nit\'s a\\b, say "x"      end'


def line(token: int, word: str | bytes) -> str:
    return f"{token} {word!r} {len(word.encode() if isinstance(word, str) else word)}"


@pytest.fixture
def path(tmp_path):
    lines = [line(i + 1, chr(i) if i < 128 else bytes([i])) for i in range(256)]
    lines += [line(257 + i, word) for i, word in enumerate(WORDS)] + [line(300, "日".encode()[:2])]
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture
def tokenizer(path):
    return data.tokenizer(data_config(tokenizer=str(path)).data)


def slow(tokenizer, text: bytes) -> list[int]:
    """The definition: the longest word of the vocabulary with which the rest of the text begins."""
    words = {tokenizer.decode_bytes([token]): token for token in range(1, tokenizer.vocab)}
    tokens = []
    while text:
        word = max((w for w in words if w and text.startswith(w)), key=len)
        tokens.append(words[word])
        text = text[len(word) :]
    return tokens


def test_the_longest_word_is_taken(tokenizer):
    np.testing.assert_array_equal(tokenizer.encode("then the"), [259, 258])
    np.testing.assert_array_equal(tokenizer.encode("日本日x"), [262, 300, "日".encode()[2] + 1, ord("x") + 1])
    for text in (TEXT.encode(), bytes(np.random.default_rng(0).integers(0, 256, 500, np.uint8)), " the" * 9 + " " * 11):
        text = text.encode() if isinstance(text, str) else text
        assert tokenizer.encode(text).tolist() == slow(tokenizer, text)
        assert tokenizer.decode_bytes(tokenizer.encode(text)) == text


def test_the_face_of_a_tokenizer(tokenizer):
    ids = tokenizer.encode(TEXT)
    assert (tokenizer.vocab, tokenizer.boundary, ids.dtype) == (301, 0, np.int32)
    assert tokenizer.decode([0, *ids, 0]) == TEXT == tokenizer.decode(tokenizer.encode(TEXT.encode()))
    (batch,) = tokenizer.encode_batch([TEXT])
    np.testing.assert_array_equal(batch, ids)
    assert batch.dtype == tokenizer.storage == np.uint16
    assert tokenizer.bytes_per_token([0, *ids]) == len(TEXT.encode()) / len(ids)
    assert tokenizer.decode([300]) == "\ufffd" and tokenizer.encode("").shape == (0,)
    stream, pieces = tokenizer.stream(), []
    for token in [0, *ids]:
        pieces.append(stream.push(token))
    assert "".join(pieces) == TEXT and stream.finish() == "" and "\ufffd" not in "".join(pieces)
    assert stream.push(300) == "" and stream.finish() == "\ufffd"


def test_fingerprint_is_the_vocabularys(tokenizer, path, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(path.read_text() + line(301, "more") + "\n")
    assert data.tokenizer(data_config(tokenizer=str(other)).data).fingerprint != tokenizer.fingerprint


@pytest.mark.parametrize(
    "bad, message",
    [
        ("301 __import__('os').getcwd() 3", "line 271 is not"),
        ("301 'a' 'b' 2", "line 271 is not"),
        ("301 'ab', 2", "line 271 is not"),
        ("301 f'{1}' 1", "line 271 is not"),
        (r"301 '\x' 1", "line 271 is not"),
        (r"301 '\ud800' 3", "line 271 is not"),
        ("301 'abc' 2", "line 271 is not"),
        ("301 '' 0", "line 271 is not"),
        ("", "line 271 is not"),
        ("0 'abc' 3", "id 0 is already used"),
        ("300 'abc' 3", "id 300 is already used"),
        ("301 'then' 4", "same word under two ids"),
    ],
)
def test_files_that_are_no_vocabulary(path, bad, message):
    path.write_text(path.read_text() + bad + "\n")
    with pytest.raises(UserError, match=message):
        WorldTokenizer(path)


def test_files_that_cannot_be_read(path, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        WorldTokenizer(tmp_path / "none.txt")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not UTF-8"):
        WorldTokenizer(path)
    path.write_text("1 'a' 1\n")
    with pytest.raises(UserError, match="no word for byte 0"):
        WorldTokenizer(path)
