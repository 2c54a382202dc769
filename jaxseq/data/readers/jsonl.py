"""JSON lines: an object per line, with the text in a field; or one JSON array of objects."""

import json
from collections.abc import Iterator
from pathlib import Path

from jaxseq.data import files
from jaxseq.data.damage import Damage
from jaxseq.data.readers import Document, Options, _records
from jaxseq.errors import UserError

SUFFIXES = (".jsonl", ".ndjson", ".json")
LARGEST_JSON = 1 << 30  # most bytes of a file that must be read at once


def read(path: Path, name: str, options: Options) -> Iterator[Document]:
    """One document per line; an array is read at once."""
    return _records.documents(json_records(path, options.damage), path, "line", name, options)


def json_records(path: Path, damage: Damage) -> Iterator[tuple[int, dict]]:
    """(line number, object) of each line that is not blank, or (position, object) of one array.

    Raises UserError naming a line that is not an object, unless `damage` leaves it out.
    """
    with files.opened(path) as lines:
        offset = 0
        for number, line in enumerate(lines, 1):
            start, offset = offset, offset + len(line)
            line = line.removeprefix(files.BOM) if start == 0 else line
            if not line.strip():
                continue
            if line.lstrip()[:1] == b"[" and files.suffix(path) == ".json":
                yield from _array(path, line + lines.read(LARGEST_JSON), start, damage)
                return
            try:
                record = _json(f"{path} line {number}", files.decode(path, line, start))
                if not isinstance(record, dict):
                    raise UserError(f"{path} line {number} is no JSON object; write one a line, with the text in a field")
            except UserError as error:
                damage.skip(error)
                continue
            yield number, record


def _array(path: Path, data: bytes, offset: int, damage: Damage) -> Iterator[tuple[int, dict]]:
    if len(data) >= LARGEST_JSON:
        raise UserError(f"{path} is one JSON array of more than {LARGEST_JSON >> 30} GiB; write JSON lines, an object a line")
    for number, record in enumerate(_json(str(path), files.decode(path, data, offset)), 1):
        if isinstance(record, dict):
            yield number, record
        else:
            damage.skip(UserError(f"{path} item {number} is no JSON object; write one an item, with the text in a field"))


def _json(place: str, content: str):
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # ValueError also for a number with too many digits
        reason = getattr(error, "msg", None) or str(error)
        raise UserError(f"{place} is no JSON ({reason}); write one JSON object a line") from error


def holds_records(path: Path, field: str) -> bool:
    """Whether a .json file has lines of objects or an array of objects, and is not one document such as settings."""
    with files.opened(path) as stream:
        head = stream.read(1 << 16).removeprefix(files.BOM).lstrip()
    first, _, rest = head.partition(b"\n")
    if head[:1] == b"[":
        return head[1:].lstrip()[:1] == b"{"
    try:
        record = json.loads(first)
    except (ValueError, RecursionError):
        return len(head) == 1 << 16 and first == head and head[:1] == b"{"  # one line, longer than the part examined
    return isinstance(record, dict) and (field in record or rest.lstrip()[:1] == b"{")
