"""Folders that are filled in several runs, one after another, and can be continued if the same is asked for again."""

from typing import Any

from jaxseq import paths
from jaxseq.errors import UserError
from jaxseq.plain_files import json_text, read_object


def check(out: Any, name: str, asked: dict[str, Any]) -> None:
    """Raises UserError if `out` cannot be written, or holds anything but a folder for `asked`, see `begin`."""
    if not paths.is_remote(out):
        paths.check_folder(out, str(out))
    if (out / name).exists():
        old = read_object(out / name).get("asked", {})
        if differing := [f"{key} {old.get(key)}" for key in asked if old.get(key) != asked[key]]:
            raise UserError(f"{out} was begun with {', '.join(differing)}; choose another folder, or ask for the same")
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; choose another folder, or remove it")


def begin(out: Any, name: str, asked: dict[str, Any]) -> None:
    """Makes the folder with a file `name` that says what was asked for, if it does not exist."""
    if (out / name).exists():
        return
    if not paths.is_remote(out):
        paths.make_folder(out, str(out))
    write(out, name, asked, {})


def write(out: Any, name: str, asked: dict[str, Any], result: dict[str, Any]) -> None:
    """Writes what was asked for, and the result."""
    paths.write(out / name, json_text({"asked": asked} | result, indent=1) + "\n")
