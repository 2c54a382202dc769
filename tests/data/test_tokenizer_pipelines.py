"""Tiny tokenizers of every published kind: our ids are those of transformers and sentencepiece (tests/files/tokenizers)."""

import json
import os
import random

import numpy as np
import pytest
from helpers.data import data_config
from helpers.places import FILES

import jaxseq
from jaxseq import _streamed_text, data
from jaxseq.data import packing
from jaxseq.errors import UserError

HERE = FILES / "tokenizers"
MADE = json.loads((HERE / "ids.json").read_text("utf-8"))
TEXTS, IDS = MADE["texts"], MADE["ids"]
LOSSLESS = ("gpt2", "llama3", "llama2", "gemma")


def opened(name):
    return data.JsonTokenizer(HERE / f"{name}.json")


@pytest.mark.parametrize("name", IDS)
def test_ids_are_those_of_transformers(name):
    tokenizer = opened(name)
    for text, plain, whole in zip(TEXTS, IDS[name]["plain"], IDS[name]["prompt"], strict=True):
        if "<" not in text:  # text is not parsed for special tokens here
            assert tokenizer.encode(text).tolist() == tokenizer.encode_batch([text])[0].tolist() == plain, text
        assert tokenizer.encode(text, special=True).tolist() == plain, text
        begin = whole[: len(whole) - len(plain)] if name != "bert" else whole[:1]
        begin = () if name == "t5" else tuple(begin)
        assert tokenizer.begin == begin
        if text and "<" not in text:
            assert tokenizer.prompt(text) == [*begin, *plain]


@pytest.mark.parametrize("name", [name for name in IDS if "sentencepiece" in IDS[name]])
def test_ids_are_those_of_sentencepiece(name):
    tokenizer = opened(name)
    for text, ids in zip(TEXTS, IDS[name]["sentencepiece"], strict=True):
        if "<" in text and name == "t5":
            continue  # a Unigram model of `tokenizers` treats the names of its special tokens as words
        assert tokenizer.encode(text).tolist() == ids, text


@pytest.mark.parametrize(
    ("name", "begin", "end"),
    [("gpt2", None, "<|endoftext|>"), ("llama3", "<|begin_of_text|>", "<|end_of_text|>"), ("llama2", "<s>", "</s>"),
     ("gemma", "<bos>", "<eos>"), ("t5", None, "</s>"), ("bert", "[CLS]", "[SEP]")],
)  # fmt: skip
def test_a_document_begins_as_its_post_processor_says_and_ends_with_the_end(name, begin, end):
    tokenizer = opened(name)
    assert tokenizer.boundary == tokenizer.find(end) and tokenizer.start == tokenizer.find(begin or end)
    assert tokenizer.prompt("") == [tokenizer.start]
    ids = tokenizer.encode("the people")
    assert tokenizer.decode([tokenizer.start, *ids, tokenizer.boundary]) == tokenizer.decode(ids) == "the people"


@pytest.mark.parametrize("name", ["gpt2", "llama2"])
def test_rows_hold_starts_and_their_targets_ends(name, tmp_path):
    """Packed rows and scored documents agree: start ids are never targets, all other ids are targets once."""
    texts = ["the people", "of America", "have the power", "x"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = opened(name)
    corpus = data.corpus(
        data_config(path=str(tmp_path / "a.jsonl"), tokenizer=str(HERE / f"{name}.json"), validation_every=0).data, tokenizer
    )
    wanted = {}
    for ids in corpus.train:
        assert ids[0] == tokenizer.start and tokenizer.boundary not in ids[1:]
        wanted[tuple(ids)] = [*ids[1:], tokenizer.boundary]
    for length in (1, 3, 5, 64):
        rows = packing.PackedRows(corpus.train, length, 0)
        found = [rows[i] for i in range(len(rows))]
        tokens, targets, weights = (np.concatenate([row[key] for row in found]) for key in ("tokens", "targets", "weights"))
        tokens, targets = tokens[weights > 0].tolist(), targets[weights > 0].tolist()
        starts = [i for i, token in enumerate(tokens) if token == tokenizer.start] + [len(tokens)]
        for start, end in zip(starts, starts[1:], strict=False):
            assert targets[start:end] == wanted.pop(tuple(tokens[start:end]))
        wanted = {tuple(ids): [*ids[1:], tokenizer.boundary] for ids in corpus.train}
        assert len(starts) == len(texts) + 1


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_continuation_keeps_its_first_space(name):
    """For a text split between any two tokens, prompt and continuation together are the text."""
    tokenizer = opened(name)
    for text in ("The people of the United States", "日本語の文 café", "a  b\n\nc"):
        ids = [*tokenizer.begin, *tokenizer.encode(text).tolist()]
        whole = tokenizer.decode(ids)
        for cut in range(1, len(ids)):
            stream = tokenizer.stream(ids[:cut])
            text = "".join(map(stream.push, ids[cut:])) + stream.finish()
            assert text == tokenizer.decode(ids[cut:], after=ids[:cut])
            assert tokenizer.decode(ids[:cut]).rstrip("\ufffd") + text == whole
    people = tokenizer.encode("The people").tolist()
    assert tokenizer.decode(people[len(tokenizer.encode("The").tolist()) :], after=people[:1]).startswith(" ")


def test_a_long_prompt_is_cut_at_a_character():
    tokenizer = opened("llama2")
    ids = tokenizer.encode("語" * 200).tolist()  # three bytes each, and every byte is a token
    for cut in range(len(ids) - 4, len(ids)):
        stream = tokenizer.stream(ids[:cut])
        assert "\ufffd" not in "".join(map(stream.push, ids[cut:])) + stream.finish()


def test_bytes_as_a_tokenizers_file(tmp_path):
    own = data.ByteTokenizer()
    name, text = own.file()
    (tmp_path / name).write_bytes(text)
    tokenizer = data.JsonTokenizer(tmp_path / name)
    assert (tokenizer.vocab, tokenizer.boundary, tokenizer.begin) == (own.vocab, own.boundary, own.begin)
    every = "".join(map(chr, range(0x250))) + "日本語 😀\r\n"
    assert tokenizer.encode(every).tolist() == own.encode(every).tolist() and tokenizer.decode(own.encode(every)) == every


def test_padding_beyond_the_embedding_is_no_fault(tmp_path):
    """Only the ids that text can have, and the end of a document, must be in the embedding."""
    from jaxseq.train.objectives import _task

    whole = json.loads((HERE / "gpt2.json").read_text())
    pad = whole["added_tokens"][0] | {"id": 340, "content": "<pad>"}
    (tmp_path / "padded.json").write_text(json.dumps(whole | {"added_tokens": [*whole["added_tokens"], pad]}))
    tokenizer = data.JsonTokenizer(tmp_path / "padded.json")
    assert (tokenizer.vocab, tokenizer.text_vocab) == (341, 340)
    for vocab in (340, 341, 352):
        assert _task.with_vocab(jaxseq.config("retnet", **{"model.vocab": vocab}), tokenizer).model.vocab == vocab
    assert _task.with_vocab(jaxseq.config("retnet"), tokenizer).model.vocab == 341
    with pytest.raises(UserError, match="model.vocab=339 is too small: texts have ids up to 339 with tokenizer padded"):
        _task.with_vocab(jaxseq.config("retnet", **{"model.vocab": 339}), tokenizer)
    with pytest.raises(UserError, match="model.vocab=340 is smaller than the tokenizer's 341 ids and 1 of train.objective"):
        _task.with_vocab(jaxseq.config("retnet", **{"model.vocab": 340}), tokenizer, 1)
    (tmp_path / "endless.json").write_text(json.dumps(EMPTY | {"model": WORDS}))
    with pytest.raises(UserError, match="no id for the end of a document, 1 with the tokenizer endless.json; name its eos"):
        _task.with_vocab(jaxseq.config("retnet", **{"model.vocab": 1}), data.JsonTokenizer(tmp_path / "endless.json"))


EMPTY = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None, "pre_tokenizer": None,
         "post_processor": None, "decoder": None}  # fmt: skip
WORDS = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
TEMPLATE = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}
X = [{"SpecialToken": {"id": "[X]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
HOSTILE = {
    "not UTF-8": b"\xff\xfe{}",
    "deep": b"[" * 100_000,
    "an id of 1e9": {"model": WORDS | {"vocab": {"a": 0, "b": 10**9}}},
    "a panic of the template": {"model": WORDS, "post_processor": TEMPLATE | {"single": X}},
    "a panic of the normalizer": {"model": WORDS, "normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAAEAAAAA"}},
    "a panic of the merges": {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}},
    "a word missing": {"model": {"type": "Unigram", "unk_id": None, "vocab": [["b", 0.0]], "byte_fallback": False}},
    "an RWKV id of 5e8": "".join(f"{i + 1} {bytes([i])!r} 1\n" for i in range(256)) + "500000000 'ab' 2\n",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_line(name, tmp_path, capfd):
    content = HOSTILE[name]
    path = tmp_path / ("vocab.txt" if isinstance(content, str) else "tokenizer.json")
    content = json.dumps(EMPTY | content) if isinstance(content, dict) else content
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=r"^data\.tokenizer=\S+ .*; [^\n]+$"):
        data.tokenizer(data_config(tokenizer=str(path)).data)
    assert capfd.readouterr().err == ""  # the library's own trace of a panic is not shown


@pytest.mark.parametrize("suffix", [".json", ".txt"])
def test_only_regular_files_are_opened(tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"zero{suffix}").symlink_to("/dev/zero")
    with (tmp_path / f"huge{suffix}").open("wb") as file:
        file.truncate(1 << 40)
    (tmp_path / f"folder{suffix}").mkdir()
    refused = {"pipe": "a pipe", "zero": "a device", "huge": "1,099,511,627,776 bytes", "folder": "a folder",
               "a\0b": "cannot be read", "none": "No such file"}  # fmt: skip
    for name, reason in refused.items():
        with pytest.raises(UserError, match=f"^data.tokenizer=.*({reason})"):
            data.tokenizer(data_config(tokenizer=str(tmp_path / f"{name}{suffix}")).data)


def test_a_panic_in_the_middle_of_the_data_is_one_line(tmp_path, monkeypatch):
    tokenizer = opened("gpt2")

    class Panicking:
        encode_special_tokens = True

        def encode_batch_fast(self, *args, **options):
            raise type("PanicException", (BaseException,), {})("index out of bounds\nmore")

        encode = decode = encode_batch_fast

    monkeypatch.setattr(tokenizer, "_tokenizer", Panicking())
    for call in (lambda: tokenizer.encode("a"), lambda: tokenizer.encode_batch(["a"]), lambda: tokenizer.decode([1])):
        with pytest.raises(UserError, match=r"is not a tokenizers JSON file \(index out of bounds\); make"):
            call()


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", [b"[" * 100_000, b"{", b"[1]", b"\xff"], ids=["deep", "cut", "a list", "not UTF-8"])
def test_hostile_files_beside_a_tokenizer(name, content, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((HERE / "gpt2.json").read_bytes())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} .*; fetch it again"):
        data.JsonTokenizer(tmp_path / "tokenizer.json")


def test_ends_are_those_of_the_generation_config(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((HERE / "llama3.json").read_bytes())
    tokenizer = data.JsonTokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.ends == (tokenizer.find("<|end_of_text|>"),)
    turn = tokenizer.find("<|eot_id|>")
    for given, ends in {(turn,): (turn,), turn: (turn,), None: (), "x": (), -1: ()}.items():
        given = list(given) if isinstance(given, tuple) else given
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": given}))
        assert data.JsonTokenizer(tmp_path / "tokenizer.json").ends == (tokenizer.boundary, *ends)
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|eot_id|>"}}))
    assert data.JsonTokenizer(tmp_path / "tokenizer.json").boundary == turn


def written(tokenizer, prompt, ids, *stops, end="length"):
    """What `jaxseq.generate` returns for the ids of a continuation."""
    row = _streamed_text.Row(0, tokenizer, set(tokenizer.ends), stops, prompt)
    for token in ids:
        if not row.end:
            row.push(token)
    if not row.end:
        row.finish(end)
    return row.take()


def test_a_stop_string_that_begins_with_a_space():
    tokenizer = opened("llama2")
    prompt = tokenizer.prompt("The people")
    ids = tokenizer.prompt("The people of America")[len(prompt) :]
    assert written(tokenizer, prompt, ids).text == " of America"
    assert written(tokenizer, prompt, ids, " of").text == "" and written(tokenizer, prompt, ids, " America").text == " of"
    ended = written(tokenizer, prompt, [*ids, tokenizer.boundary, *ids])
    assert (ended.text, ended.end, ended.tokens) == (" of America", "stop", ids)


@pytest.mark.parametrize("name", ["byte", "gpt2", "llama2"])
def test_a_character_that_the_length_cuts_is_left_out(name):
    tokenizer = data.ByteTokenizer() if name == "byte" else opened(name)
    prompt = tokenizer.prompt("a")
    ids = tokenizer.prompt("a 語")[len(prompt) :]
    cut = written(tokenizer, prompt, ids[:-1])
    assert "\ufffd" not in cut.text and cut.tokens == ids[:-1]
    assert "\ufffd" in written(tokenizer, prompt, ids[:-1], end="stop").text
    assert written(tokenizer, prompt, ids).text == " 語"
    assert written(tokenizer, [*prompt, *ids[:-1]], ids[-1:]).text.endswith("語")  # a prompt that ends inside a character


@pytest.mark.parametrize("name", ["byte", "gpt2", "llama2"])
def test_a_prompt_is_cut_at_a_character(name):
    tokenizer = data.ByteTokenizer() if name == "byte" else opened(name)
    text = "The 日本語 😀 語彙 🚀."
    ids = tokenizer.prompt(text)
    for cut in range(1, len(ids) + 1):
        prompt = data.whole_characters(tokenizer, ids[:cut])
        assert text.startswith(tokenizer.decode(prompt)) and len(prompt) > cut - 8
    bad = [ids[0], *[next(i for i in ids if tokenizer.decode([i]) == "\ufffd")] * 9]
    assert data.whole_characters(tokenizer, bad) == bad  # no text, wherever it ends


BAD = (None, True, -1, 0, 2**31, 2**40, 1e308, "", "a", "\0", [], {}, [[]], {"type": "x"}, [None], "\U0001f600" * 50)


def places(value, before=()):
    """The path of every value in some JSON; of the vocabulary only one in fifty."""
    found = [before] if before else []
    for key, inside in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if before[-1:] not in (("vocab",), ("merges",)) or len(found) < 4:
            found += places(inside, (*before, key))
    return found


def damaged(whole, chance):
    """A tokenizer file with one value replaced or removed."""
    *path, last = chance.choice(places(whole))
    at = whole
    for key in path:
        at = at[key]
    if isinstance(at, dict) and chance.random() < 0.2:
        del at[last]
    else:
        at[last] = chance.choice(BAD)
    return whole


@pytest.mark.parametrize("seeds", [range(40), pytest.param(range(40, 1000), marks=pytest.mark.slow)], ids=["some", "many"])
def test_a_damaged_file_works_or_is_refused_in_one_line(seeds, tmp_path, capfd):
    for seed in seeds:
        chance = random.Random(seed)
        whole = json.loads((HERE / f"{chance.choice(list(IDS))}.json").read_text("utf-8"))
        (tmp_path / "tokenizer.json").write_text(json.dumps(damaged(whole, chance)))
        try:
            tokenizer = data.JsonTokenizer(tmp_path / "tokenizer.json")
            tokenizer.encode_batch(["a", "the people"])
            tokenizer.decode(tokenizer.prompt("of 😀"), after=tokenizer.prompt("the"))
        except UserError as error:
            assert "\n" not in str(error), seed
    assert capfd.readouterr().err == ""
