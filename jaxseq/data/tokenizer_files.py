"""The files of a tokenizer: opened with care, and carried from folder to folder.

A tokenizer is one file (a tokenizers JSON file, or an RWKV vocabulary) and the small files that other libraries keep beside it.
Nothing in them is executed here; a chat template among them is a program, which `jaxseq.chat` runs in a process of its own.
"""

import os
from pathlib import Path
from typing import Any

from jaxseq import paths, plain_files
from jaxseq.errors import UserError

AUTO, UNKNOWN = "auto", "unknown"  # what data.tokenizer may be beside byte and a path
BYTES = ("byte", "bytes", AUTO)
BUILT_IN = (*BYTES, "nucleotide")  # names that are no files
CONFIG, GENERATION, TEMPLATE = "tokenizer_config.json", "generation_config.json", "chat_template.jinja"
BESIDE = (CONFIG, GENERATION, TEMPLATE, "special_tokens_map.json")
LARGEST = 256 << 20  # bytes; the vocabularies in use take some 30 MB
LARGEST_BESIDE = 16 << 20


def contents(path: str | Path, what: str, largest: int = LARGEST) -> bytes:
    """The bytes of a regular file of at most `largest` bytes: devices and pipes may never end.

    what: the field and value to name, such as "data.tokenizer=bpe.json". Raises UserError when it cannot be read.
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
    """The JSON object in the file `name` beside the tokenizer `path`; {} when there is none. Raises UserError when it is no
    JSON object."""
    file = paths.of(path).parent / name
    return plain_files.read_object(file, LARGEST_BESIDE) if file.exists() else {}


def special(config: dict[str, Any], name: str) -> str | None:
    """The text of a special token of tokenizer_config.json, such as "eos_token": a string, or an object with its content."""
    value = config.get(name)
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def ids(value: Any) -> list[int]:
    """The ids of a field such as eos_token_id: one, a list, or none."""
    return [i for i in (value if isinstance(value, list) else [value]) if type(i) is int and i >= 0]


def kept_name(name: str) -> str:
    """What the tokenizer file is called in a workdir."""
    return f"tokenizer{'.txt' if name.endswith('.txt') else '.json'}"


def locate(workdir: str | Path, name: str) -> str:
    """`name`, the data.tokenizer of a workdir's config, as it is now: a file in the workdir, wherever that has been moved to,
    else the absolute path of a file that is there, else the name."""
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
    """Whether two values of data.tokenizer are the same tokenizer."""
    if one == other or {one, other} <= set(BYTES):
        return True
    files = [paths.of(name).expanduser() for name in (one, other)]
    return all(map(_is_file, files)) and contents(files[0], one) == contents(files[1], other)


def copy(source: str | Path, folder: str | Path, name: str | None = None) -> Path:
    """Copies a tokenizer's files into a folder, where there is no other; returns its path there.

    Raises UserError when the folder holds another tokenizer.
    """
    source, folder = paths.absolute(paths.of(source).expanduser()), paths.absolute(folder)
    if source.parent == folder:
        return source
    target = folder / (name or kept_name(source.name))
    data = contents(source, f"data.tokenizer={source}")
    if target.exists() and contents(target, str(target)) != data:
        raise UserError(f"{folder} holds another tokenizer than {source}; choose another folder, or leave data.tokenizer out")
    for name in BESIDE:
        if _is_file(source.parent / name):
            write(folder / name, contents(source.parent / name, str(source.parent / name), LARGEST_BESIDE))
    write(target, data)
    return target


def write(path: Path, data: bytes) -> None:
    """In one move, readable for all whom the folder is open to."""
    paths.write(path, data, mode=0o644)
