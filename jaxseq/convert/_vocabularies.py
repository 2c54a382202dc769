"""Makes a tokenizers JSON file from the files of older folders: tokenizer.model (SentencePiece, BPE), or vocab.json and
merges.txt (GPT-2's byte-level BPE). Other kinds are named in the error message.

Ids for a tokenizer.model are those of SentencePiece. transformers 5 gives other ids for texts that begin with a space: it leaves
out the space that SentencePiece adds in front.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxseq.convert.sources import _gguf_tokenizer as gguf
from jaxseq.data import tokenizer_files as files
from jaxseq.errors import UserError
from jaxseq.plain_files import read_json

BYTE_LEVEL = ("GPT2Tokenizer", "GPT2TokenizerFast")  # supported values of tokenizer_class for vocab.json and merges.txt
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
REMEDY = "transformers' AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) makes a tokenizer.json from it"
OTHERS = ("spiece.model", "vocab.txt", "vocab.json")


def made(folder: Path, model_type: Any) -> tuple[str | None, str]:
    """(a tokenizers JSON text, "") made from the files in a folder, or (None, the reason why not)."""
    if (folder / "tokenizer.model").is_file():
        return _sentencepiece(folder)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _merged(folder, model_type)
    other = next((name for name in OTHERS if (folder / name).is_file()), None)
    return None, f"{other} alone is not read; {REMEDY}" if other else "there is none next to the weights"


def _config(folder: Path) -> dict[str, Any]:
    return files.beside(folder / "tokenizer.json", files.CONFIG)


def _sentencepiece(folder: Path) -> tuple[str | None, str]:
    path = folder / "tokenizer.model"
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError:
        return None, "tokenizer.model needs the package sentencepiece; pip install 'jaxseq[sentencepiece]'"
    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(files.contents(path, str(path)))
    except UserError:
        raise
    except Exception as error:  # google.protobuf's DecodeError, whose module is not public
        raise UserError(f"{path} is not a SentencePiece model ({error}); fetch it again") from None
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    kind = sentencepiece_model_pb2.TrainerSpec.ModelType.Name(trainer.model_type)
    odd = [name for name, found in (
        (f"a {kind} model", kind != "BPE"), (f"the normalisation {normalizer.name}", bool(normalizer.precompiled_charsmap)),
        ("spaces removed", normalizer.remove_extra_whitespaces), ("spaces as suffixes", trainer.treat_whitespace_as_suffix),
    ) if found]  # fmt: skip
    if odd or not model.pieces:
        return None, f"tokenizer.model with {', '.join(odd) or 'no piece'} is not read; {REMEDY}"
    config = _config(folder)
    theirs = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [piece.piece for piece in model.pieces],
        "tokenizer.ggml.scores": [piece.score for piece in model.pieces],
        "tokenizer.ggml.token_type": [piece.type for piece in model.pieces],
        "tokenizer.ggml.add_space_prefix": normalizer.add_dummy_prefix,
        "tokenizer.ggml.bos_token_id": trainer.bos_id,
        "tokenizer.ggml.eos_token_id": trainer.eos_id,
        "tokenizer.ggml.add_bos_token": config.get("add_bos_token", True) is not False,
        "tokenizer.ggml.add_eos_token": config.get("add_eos_token") is True,
    }
    return _with_added(gguf.tokenizer(theirs), folder, config), ""


def _merged(folder: Path, model_type: Any) -> tuple[str | None, str]:
    config = _config(folder)
    known = config.get("tokenizer_class") or {"gpt2": BYTE_LEVEL[0]}.get(model_type)
    if known not in BYTE_LEVEL:
        what = known or f"the tokenizer of model_type {model_type!r}"
        return None, f"vocab.json and merges.txt of {what} are not read; {REMEDY}"
    vocab = read_json(folder / "vocab.json", files.LARGEST)
    if not isinstance(vocab, dict) or sorted(map(str, vocab.values())) != sorted(map(str, range(len(vocab)))):
        raise UserError(f"{folder / 'vocab.json'} does not give the words distinct ids from 0; fetch it again")
    try:
        lines = files.contents(folder / "merges.txt", str(folder / "merges.txt")).decode().split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{folder / 'merges.txt'} is not UTF-8; fetch it again") from None
    merges = [line.rstrip("\r") for line in lines if line.strip() and not line.startswith("#version")]
    if wrong := next((line for line in merges if len(line.split(" ")) != 2 or line.replace(" ", "", 1) not in vocab), None):
        raise UserError(f"{folder / 'merges.txt'} has the line {wrong!r}, which joins no word of vocab.json; fetch it again")
    tokens = sorted(vocab, key=vocab.get)
    special = _special(folder, config) | {"<|endoftext|>"}
    theirs = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [gguf.CONTROL if token in special else gguf.NORMAL for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_bos_token": config.get("add_bos_token") is True,
        "tokenizer.ggml.bos_token_id": vocab.get(files.special(config, "bos_token") or "<|endoftext|>"),
    }
    return _with_added(gguf.tokenizer(theirs), folder, config), ""


def _special(folder: Path, config: Mapping[str, Any]) -> set[str]:
    """The texts of the special tokens named in the files beside the vocabulary."""
    maps = (config, files.beside(folder / "tokenizer.json", "special_tokens_map.json"))
    return {text for found in maps for name in SPECIAL if (text := files.special(found, name))}


def _with_added(text: str, folder: Path, config: Mapping[str, Any]) -> str:
    """The tokenizers JSON text with the tokens that were added after the vocabulary."""
    given = config.get("added_tokens_decoder")
    given = given if isinstance(given, dict) else {}
    plain = files.beside(folder / "tokenizer.json", "added_tokens.json")
    added = {int(i): token for i, token in given.items() if str(i).isdecimal() and isinstance(token, dict)}
    added |= {i: {"content": name, "special": True} for name, i in plain.items() if type(i) is int and i not in added}
    whole = json.loads(text)
    size, known = len(whole["model"]["vocab"]), {token["id"] for token in whole["added_tokens"]}
    for i, token in sorted(added.items()):
        if i in known or not isinstance(token.get("content"), str):
            continue
        if i < size and whole["model"]["vocab"].get(token["content"]) != i:
            raise UserError(f"{folder} adds {token['content']!r} as {i}, which is another word's id; fetch its files again")
        flags = {name: token.get(name) is True for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        whole["added_tokens"].append({"id": i, "content": token["content"], **flags})
    whole["added_tokens"].sort(key=lambda token: token["id"])
    return json.dumps(whole, ensure_ascii=False)
