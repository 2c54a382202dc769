"""The files of a tokenizer: opened with care, and carried from folder to folder.

A tokenizer is one file (a tokenizers JSON file, or an RWKV vocabulary) and the small files that other libraries keep beside it.
Nothing in them is executed here; a chat template among them is a program, which `jaxseq.chat` runs in a process of its own.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

from jaxseq.errors import UserError

CONFIG, GENERATION, TEMPLATE = "tokenizer_config.json", "generation_config.json", "chat_template.jinja"
BESIDE = (CONFIG, GENERATION, TEMPLATE, "special_tokens_map.json")
LARGEST = 256 << 20  # bytes; the vocabularies in use take some 30 MB
LARGEST_BESIDE = 16 << 20


def contents(path: str | Path, what: str, largest: int = LARGEST) -> bytes:
    """The bytes of a regular file of at most `largest` bytes: devices and pipes may never end.

    what: the field and value to name, such as "data.tokenizer=bpe.json". Raises UserError when it cannot be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would wait for its writer
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise UserError(f"{what} is no regular file; give byte or a tokenizers JSON file")
            if found.st_size > largest:
                raise UserError(f"{what} has {found.st_size:,} bytes, which is too much; give byte or a tokenizers JSON file")
            return file.read(largest)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{what} cannot be read ({reason}); give byte or a tokenizers JSON file") from error


def beside(path: str | Path, name: str) -> dict[str, Any]:
    """The JSON object in the file `name` beside the tokenizer `path`; {} when there is none. Raises UserError when it is no
    JSON object."""
    file = Path(path).parent / name
    if not file.exists():
        return {}
    try:
        found = json.loads(contents(file, str(file), LARGEST_BESIDE).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON ({str(error).splitlines()[0]}); fetch it again, or remove it") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} holds no JSON object; fetch it again, or remove it")
    return found


def special(config: dict[str, Any], name: str) -> str | None:
    """The text of a special token of tokenizer_config.json, such as "eos_token": a string, or an object with its content."""
    value = config.get(name)
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def ids(value: Any) -> list[int]:
    """The ids of a field such as eos_token_id: one, a list, or none."""
    return [i for i in (value if isinstance(value, list) else [value]) if type(i) is int and i >= 0]
