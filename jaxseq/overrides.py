"""Setting a field of a config by its dotted name, as in --config.train.steps=100."""

import difflib
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict, FieldReference

from jaxseq.errors import UserError


def set_field(cfg: ConfigDict, key: str, value: Any) -> None:
    """Sets the field `key`, "train.steps", to a value of its type or the text of one. Raises UserError."""
    *path, last = key.split(".")
    section = cfg
    for part in path:
        if part not in section or not isinstance(section[part], ConfigDict):
            raise UserError(unknown(key, part, section))
        section = section[part]
    if last not in section:
        raise UserError(unknown(key, last, section))
    if isinstance(section[last], ConfigDict):
        raise UserError(f"config.{key} is a section; set one of its fields: {', '.join(section[last])}")
    kind = type_of(section, last)
    try:
        # "none" is a valid value of some text fields (model.remat); for all other fields it means empty
        section[last] = value if value == "none" and isinstance(section[last], str) else _convert(value, kind)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"config.{key} must be {kind.__name__}, not {value!r}") from None


def unknown(key: str, part: str, section: Iterable[str]) -> str:
    """Error message for `key`: its `part` is not a field of `section`."""
    close = difflib.get_close_matches(part, list(section), n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there is: {', '.join(section)}"
    return f"config has no {key!r}; {hint}"


def type_of(section: ConfigDict, name: str) -> type:
    """The type of a field, also of an empty one."""
    reference: FieldReference = section.get_ref(name)
    return reference.get_type()


def _convert(value: Any, kind: type) -> Any:
    """`value`, or its text form, converted to `kind`; None for "none". Raises KeyError, TypeError or ValueError."""
    if isinstance(value, str) and value.lower() == "none" or value is None:
        return None
    if kind is bool and isinstance(value, str):
        return {"true": True, "1": True, "false": False, "0": False}[value.lower()] if value else None
    if kind is bool and not isinstance(value, bool):
        raise TypeError(value)
    if kind is int and isinstance(value, float) and not value.is_integer():
        raise TypeError(value)
    if kind is int and isinstance(value, str):
        return int(value.replace("_", ""))
    if kind is str and not isinstance(value, str):
        raise TypeError(value)
    return kind(value)
