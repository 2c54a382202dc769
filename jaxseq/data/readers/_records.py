"""Documents from records: lines of JSON, rows of tables."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from jaxseq.data.readers import Document, Options
from jaxseq.errors import UserError

SHOWN = 8  # names of fields in a message


def documents(records: Iterable[tuple[int, Mapping]], path: Path, unit: str, name: str, options: Options) -> Iterator[Document]:
    """A document for each (number, record); damaged records are skipped. unit: "line" or "row", for messages."""
    for number, record in records:
        try:
            yield document(f"{path} {unit} {number}", record, f"{name}:{number}", options.field)
        except UserError as error:
            options.damage.skip(error)


def document(place: str, record: Mapping, name: str, field: str) -> Document:
    """A record as a document, named by its "id" if it has one."""
    check_field(place, "field", record, field)
    value = record[field]
    if value is None:
        raise UserError(f"{place}: {field!r} is null; give it a text (it may be empty) or remove the record")
    if not isinstance(value, str):
        raise UserError(f"{place}: {field!r} is {type(value).__name__}, not text; set data.field")
    own = record.get("id")
    return Document(str(own) if isinstance(own, str | int) else name, _sound(value))


def check_field(place: object, what: str, names: Iterable[str], field: str) -> None:
    """Raises UserError if `field` is not among the names of fields or columns."""
    if field not in names:
        have = ", ".join(map(str, list(names)[:SHOWN]))[:200] or "none"
        raise UserError(f"{place} has no {what} {field!r} (it has: {have}); set data.field")


def _sound(value: str) -> str:
    """Replaces lone surrogates, which JSON can contain but which are not characters, by U+FFFD."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value
