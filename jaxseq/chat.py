"""Conversations as prompts: renders the chat template of a checkpoint as transformers does.

A template is a program in jinja2's language. It runs in jinja2's sandbox, in a separate process with limited time and memory
and with an almost empty environment; only the text comes back. Needs the extra `chat`.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxseq.data import Tokenizer, tokenizer_files
from jaxseq.errors import UserError

PATIENCE = 10  # wall-clock seconds allowed for the template's two seconds of processor time
START = 60  # seconds allowed for Python to start
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TZ")  # environment variables that are passed on


def template(tokenizer: Tokenizer) -> str:
    """The chat template beside a tokenizer: chat_template.jinja, else chat_template in tokenizer_config.json; if there are
    several, the one named default. Raises UserError if there is none."""
    path = getattr(tokenizer, "path", None)
    if path is not None:
        file = path.parent / tokenizer_files.TEMPLATE
        if file.exists():
            return _text(file)
        found = tokenizer_files.beside(path, tokenizer_files.CONFIG).get("chat_template")
        if isinstance(found, list):
            named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, Mapping)}
            found = named.get("default")
            if found is None:
                raise UserError(f"{path.parent} has the chat templates {', '.join(map(str, named))} and none named default")
        if isinstance(found, str):
            return found
    raise UserError(
        f"there is no chat template beside the tokenizer {tokenizer.name} (chat_template.jinja, or chat_template in "
        "tokenizer_config.json); write the prompt itself, or import the checkpoint with these files"
    )


def _text(file: Path) -> str:
    try:
        return tokenizer_files.contents(file, str(file), tokenizer_files.LARGEST_BESIDE).decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8; fetch it again") from None


def special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """{"bos_token": text, …} from the files beside a tokenizer, under the names that templates use."""
    if getattr(tokenizer, "path", None) is None:
        return {}
    files = [tokenizer_files.beside(tokenizer.path, name) for name in ("special_tokens_map.json", tokenizer_files.CONFIG)]
    found = {name: tokenizer_files.special(file, name) for file in files for name in SPECIAL if name in file}
    return {name: text for name, text in found.items() if text is not None}


def prompt(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], **variables: Any) -> list[int]:
    """The ids of the prompt for the next message: the template's text, in which special tokens are encoded as such.

    messages: [{"role": "user", "content": text}, …]. Raises UserError as `template` and `render` do.
    """
    text = render(template(tokenizer), messages, **special_tokens(tokenizer) | variables)
    ids = tokenizer.encode(text, special=True).tolist()
    if not ids:
        raise UserError("the chat template gives an empty text for these messages; write the prompt itself")
    return ids


def render(text: str, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any) -> str:
    """Renders a conversation with the template `text`.

    variables: further variables of the template, such as `tools`, `documents`, "bos_token". Raises UserError if the template
    rejects the messages, fails, or takes more than 2 seconds or 256 MB.
    """
    if importlib.util.find_spec("jinja2") is None:
        raise UserError("chat templates need the package jinja2; pip install 'jaxseq[chat]'")
    known = {"messages": list(messages), "tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
    answer = _run(json.dumps({"template": text, "variables": known | variables}))
    if "text" not in answer:
        mend = "change the messages, or write the prompt itself"
        raise UserError(f"the chat template cannot be rendered: {answer['error']}; {mend}")
    return answer["text"]


def _run(given: str) -> dict[str, str]:
    """The answer of a `_chat_render` process."""
    program = Path(__file__).with_name("_chat_render.py")
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    with subprocess.Popen(
        [sys.executable, "-P", str(program)], env=environment | {"PYTHONUTF8": "1"}, cwd=Path(sys.executable).anchor or None,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
    ) as process:  # fmt: skip
        try:
            if process.stdout.readline() != "ready\n":
                return {"error": "its process cannot start"}
            out, _ = process.communicate(given, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            out = ""
        finally:
            process.kill()
    try:
        return json.loads(out)
    except ValueError:
        return {"error": "it takes more than 2 seconds or 256 MB"}
