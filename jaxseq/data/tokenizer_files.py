"""The files of a tokenizer: checked when read, and copied from folder to folder.

A tokenizer is one file (a tokenizers JSON file or an RWKV vocabulary) and small files that other libraries keep beside it.
Nothing in them is executed here. A chat template is a program; `jaxseq.chat` runs it in a separate process.
"""

import os
from pathlib import Path
from typing import Any

from jaxseq import paths, plain_files
from jaxseq.errors import UserError

AUTO, UNKNOWN = "auto", "unknown"  # values of data.tokenizer
BYTES = ("byte", "bytes", AUTO)
BUILT_IN = (*BYTES, "nucleotide")  # values that are not paths
CONFIG, GENERATION, TEMPLATE = "tokenizer_config.json", "generation_config.json", "chat_template.jinja"
BESIDE = (CONFIG, GENERATION, TEMPLATE, "special_tokens_map.json")
LARGEST = 256 << 20  # bytes; published vocabularies have up to about 30 MB
LARGEST_BESIDE = 16 << 20


def contents(path: str | Path, what: str, largest: int = LARGEST) -> bytes:
    """The bytes of a regular file of at most `largest` bytes. Devices and pipes, which may never end, are refused.

    what: the field and value for messages, such as "data.tokenizer=bpe.json". Raises UserError if it cannot be read.
    """
    try:
        if not paths.is_remote(path):
            os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{what} cannot be read ({reason}); give byte or a tokenizers JSON file") from error
    try:
        return plain_files.read_bytes(path, largest)
    except UserError as error:
        reason = str(error).partition(";")[0]
        raise UserError(f"{what} cannot be read: {reason}; give byte or a tokenizers JSON file") from error


def beside(path: str | Path, name: str) -> dict[str, Any]:
    """The JSON object in the file `name` beside the tokenizer `path`; {} if there is no such file. Raises UserError if it is not
    a JSON object."""
    file = paths.of(path).parent / name
    return plain_files.read_object(file, LARGEST_BESIDE) if file.exists() else {}


def special(config: dict[str, Any], name: str) -> str | None:
    """The text of a special token in tokenizer_config.json, such as "eos_token": a string, or the "content" of an object."""
    value = config.get(name)
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def ids(value: Any) -> list[int]:
    """The ids in a field such as eos_token_id, which has one id, a list of ids, or none."""
    return [i for i in (value if isinstance(value, list) else [value]) if type(i) is int and i >= 0]


def kept_name(name: str) -> str:
    """The name of the tokenizer file in a workdir."""
    return f"tokenizer{'.txt' if name.endswith('.txt') else '.json'}"


def locate(workdir: str | os.PathLike, name: str) -> str:
    """The current path of the tokenizer `name` of a workdir's config: of the copy in the workdir, else of `name` itself; `name`
    unchanged if neither is a file. The workdir may have been moved since the config was written."""
    if name in (*BUILT_IN, UNKNOWN):
        return name
    path, folder = paths.of(name).expanduser(), paths.of(workdir)
    candidates = (folder / path.name, folder / kept_name(name), path)
    return next((str(paths.absolute(found)) for found in candidates if _is_file(found)), name)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def same(one: str, other: str) -> bool:
    """Whether two values of data.tokenizer mean the same tokenizer."""
    if one == other or {one, other} <= set(BYTES):
        return True
    files = [paths.of(name).expanduser() for name in (one, other)]
    return all(map(_is_file, files)) and contents(files[0], one) == contents(files[1], other)


def copy(source: str | os.PathLike, folder: str | os.PathLike, name: str | None = None) -> Path:
    """Copies a tokenizer's files into a folder and returns its path there.

    Raises UserError if the folder has another tokenizer.
    """
    source, folder = paths.absolute(paths.of(source).expanduser()), paths.absolute(folder)
    if source.parent == folder:
        return source
    target = folder / (name or kept_name(source.name))
    data = contents(source, f"data.tokenizer={source}")
    if target.exists() and contents(target, str(target)) != data:
        raise UserError(f"{folder} has another tokenizer than {source}; choose another folder, or leave data.tokenizer out")
    for name in BESIDE:
        if _is_file(source.parent / name):
            write(folder / name, contents(source.parent / name, str(source.parent / name), LARGEST_BESIDE))
    write(target, data)
    return target


def write(path: Path, data: bytes) -> None:
    """Writes a file atomically, with the usual permissions (readable by all)."""
    paths.write(path, data, mode=0o644)
