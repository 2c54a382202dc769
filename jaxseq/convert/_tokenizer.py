"""The files beside published weights: tokenizer, special ids, chat template, generation settings."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxseq import data, paths
from jaxseq.convert import _vocabularies
from jaxseq.convert._source import WeightSource
from jaxseq.data import tokenizer_files as files
from jaxseq.errors import UserError
from jaxseq.plain_files import json_text

IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
POSITIONS = ("max_position_embeddings", "n_positions", "llama.context_length")  # the first that their config has is used
PUBLISHED = "published.json"  # in a workdir: fields of their config that ours does not have
VOCABULARIES = "rwkv_vocab*.txt"


def found(path: str | Path, source: WeightSource, theirs: Mapping, file: str | None = None) -> dict[str, bytes]:
    """{name: contents} of the files for a workdir; they include "tokenizer.json" or "tokenizer.txt" if there is a tokenizer.

    file: the tokenizer to take instead of the one beside the weights, or byte for none. Raises UserError if it does not exist,
    is not a tokenizer, or produces ids for which the model has no embedding rows.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    out = {name: files.contents(folder / name, str(folder / name), files.LARGEST_BESIDE)
           for name in files.BESIDE if (folder / name).is_file()}  # fmt: skip
    out = {name: text.encode() for name, text in _made(source, theirs).items()} | out
    chosen = None if file in files.BUILT_IN else Path(file).expanduser() if file else _beside(folder)
    if file and chosen and not chosen.is_file():
        raise UserError(f"there is no tokenizer {file}; give a tokenizers JSON file, an RWKV vocabulary, or byte")
    if chosen:
        out.pop("tokenizer.json", None)
        out[files.kept_name(chosen.name)] = files.contents(chosen, f"--tokenizer={chosen}")
    elif file:
        out.pop("tokenizer.json", None)
    elif "tokenizer.json" not in out and (text := _vocabularies.made(folder, theirs.get("model_type"))[0]):
        out["tokenizer.json"] = text.encode()
    ids = {name: theirs[name] for name in IDS if files.ids(theirs.get(name))}
    if ids and files.GENERATION not in out:
        out[files.GENERATION] = _text(ids)
    positions = next((theirs[name] for name in POSITIONS if isinstance(theirs.get(name), int)), None)
    if ids or positions:
        out[PUBLISHED] = _text(ids | ({"max_position_embeddings": positions} if positions else {}))
    return out


def _beside(folder: Path) -> Path | None:
    """The tokenizer file in a folder of weights."""
    if (folder / "tokenizer.json").is_file():
        return folder / "tokenizer.json"
    vocabularies = sorted(folder.glob(VOCABULARIES))
    return vocabularies[0] if len(vocabularies) == 1 else None


def _made(source: WeightSource, theirs: Mapping) -> dict[str, str]:
    """Tokenizer files made from the metadata in the checkpoint itself."""
    text = source.tokenizer(theirs)
    return ({"tokenizer.json": text} if text else {}) | source.beside(theirs)


def missing(path: str | Path, theirs: Mapping) -> str:
    """Why no tokenizer was found beside the weights, for a message."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    return _vocabularies.made(folder, theirs.get("model_type"))[1]


def check(out: Mapping[str, bytes], vocab: int) -> str | None:
    """The name of the tokenizer file among those of `found`, or None. Raises UserError if it cannot be used."""
    name = next((name for name in ("tokenizer.json", "tokenizer.txt") if name in out), None)
    if name is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        for other, text in out.items():
            (Path(folder) / other).write_bytes(text)
        kind = data.JsonTokenizer if name.endswith(".json") else data.WorldTokenizer
        try:
            tokenizer = kind(Path(folder) / name)
        except UserError as error:
            raise UserError(str(error).replace(f"data.tokenizer={folder}/", "the tokenizer ").replace(f"{folder}/", "")) from None
    if tokenizer.text_vocab > vocab:
        raise UserError(
            f"the tokenizer produces ids up to {tokenizer.text_vocab - 1} and the model has rows for {vocab}; "
            "give the tokenizer of these weights as --tokenizer"
        )
    return name


def export(folder: str | Path, config: ConfigDict, workdir: str | Path) -> bool:
    """Writes a workdir's tokenizer beside the weights in `folder`, and its special ids into the config.json there. Returns
    False if the workdir has no tokenizer.

    Raises UserError if the tokenizer cannot be read.
    """
    folder, known = Path(folder), config.data.tokenizer != files.UNKNOWN
    published = files.beside(paths.of(workdir) / PUBLISHED, PUBLISHED)
    positions = published.get("max_position_embeddings")
    more: dict[str, Any] = {name: published[name] for name in IDS if name in published}
    if known:
        tokenizer = data.tokenizer(config.data)
        name, text = tokenizer.file()
        files.write(folder / name, text)
        path = getattr(tokenizer, "path", None)
        for other in files.BESIDE if path else ():
            if (path.parent / other).is_file():
                files.write(folder / other, files.contents(path.parent / other, str(path.parent / other), files.LARGEST_BESIDE))
        ends = list(tokenizer.ends)
        more = more or {"bos_token_id": tokenizer.start, "eos_token_id": ends[0] if len(ends) == 1 else ends}
        positions = positions or config.train.length
        if name == "tokenizer.json" and not (folder / files.CONFIG).exists():
            files.write(folder / files.CONFIG, _tokenizer_config(folder / name, tokenizer, positions))
        if not (folder / files.GENERATION).exists():
            files.write(folder / files.GENERATION, _text({name: more[name] for name in IDS if name in more}))
    theirs = files.beside(folder / "config.json", "config.json")
    if positions and "num_attention_heads" in theirs and not any(name in theirs for name in POSITIONS):
        more["max_position_embeddings"] = positions
    files.write(folder / "config.json", _text(more | theirs))
    return known


def _tokenizer_config(path: Path, tokenizer, positions: int) -> bytes:
    """tokenizer_config.json: tells transformers the end-of-text tokens and the ids to put before a text."""
    import tokenizers

    word = tokenizers.Tokenizer.from_buffer(path.read_bytes()).id_to_token  # `from_file` takes no path that is not UTF-8
    special = {"bos_token": word(tokenizer.start), "eos_token": word(tokenizer.boundary)}
    return _text(
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": positions, "clean_up_tokenization_spaces": False}
        | {name: text for name, text in special.items() if text}
    )


def _text(value: Mapping[str, Any]) -> bytes:
    return (json_text(value, indent=2, ensure_ascii=False) + "\n").encode()
