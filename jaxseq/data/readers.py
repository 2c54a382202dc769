"""One reader for each kind of file: yields the documents of a path lazily and in order.

A reader is `read(path, name, options) -> Iterator[Document]`. Documents without an id get one that begins with `name`. Every
error in a file is a UserError that names the file and the place in it.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxseq.data import files
from jaxseq.data.damage import Damage
from jaxseq.errors import UserError

SEPARATOR = b"<|endoftext|>"
PIECE_BYTES = 1 << 16  # a text is cut into pieces of at most about this size
DNA_DOCUMENT = 8192  # bases
LARGEST_JSON = 1 << 30  # most bytes of a file that must be read at once
LARGEST_FIELD = 1 << 27  # characters of a field of a .csv

csv.field_size_limit(LARGEST_FIELD)


class Document(NamedTuple):
    id: str
    text: str


class TokenDocument(NamedTuple):
    """A document from a file of token ids. ids: [T], without a boundary."""

    id: str
    ids: np.ndarray


class Options(NamedTuple):
    """field: the field or column with the text. parts: the minimum number of pieces of a text. boundary: the tokenizer's, for
    files of token ids. damage: collects the records that cannot be used."""

    field: str
    parts: int = 1
    boundary: int | None = None
    damage: Damage = Damage()

    def stamp(self) -> list:
        """The options that determine the documents, as JSON data."""
        return [*self[:3], *([self.damage.allowed] if self.damage.allowed else [])]


Reader = Callable[[Path, str, Options], Iterator[Document | TokenDocument]]


def text(path: Path, name: str, options: Options) -> Iterator[Document]:
    """A text as documents: split at "<|endoftext|>", else into at least `options.parts` pieces of at most 64 KiB.

    Cuts are made after blank lines if possible, else after line ends, spaces or characters.
    """
    with files.mapped(path) as data:
        files.refuse_binary(path, data)
        for start, end in pieces(data, max(1, min(PIECE_BYTES, len(data) // options.parts))):
            whole = end - start >= len(data) - len(files.BOM)
            try:
                content = files.decode(path, data[start:end], start)
            except UserError as error:
                options.damage.leave_out(error)
                continue
            yield Document(name if whole else f"{name}:{start}", content)


def pieces(data, target: int) -> Iterator[tuple[int, int]]:
    """[start, end) of each document of a text, in bytes. `data` is bytes or an mmap."""
    size = len(data)
    start = len(files.BOM) if data[: len(files.BOM)] == files.BOM else 0
    if data.find(SEPARATOR) >= 0:
        while start < size:
            end = data.find(SEPARATOR, start)
            end = size if end < 0 else end
            head = start + _line_end(data[start : start + 2]) * (start > 0)
            last = data[max(head, end - 2) : end]
            tail = end - (2 if last == b"\r\n" else last.endswith(b"\n"))
            if head < tail:
                yield head, tail
            start = end + len(SEPARATOR)
        return
    while start < size:
        end = _cut(data, start + target, min(size, start + 2 * target)) if size - start > target else size
        yield start, end
        start = end


def _line_end(two: bytes) -> int:
    """The length of the line end that two bytes begin with."""
    return 2 if two == b"\r\n" else int(two[:1] == b"\n")


def _cut(data, low: int, high: int) -> int:
    """The position in [low, high] to end a piece: after a blank line, a line end or a space, or else between characters."""
    for pattern in (b"\n\n", b"\n\r\n", b"\n", b" "):
        at = data.find(pattern, low - len(pattern), high)
        if at >= 0:
            return at + len(pattern)
    while low < len(data) and data[low] & 0xC0 == 0x80:  # a continuation byte of UTF-8
        low += 1
    return low


def json_lines(path: Path, name: str, options: Options) -> Iterator[Document]:
    """One JSON object per line, or one JSON array of objects (read at once)."""
    for number, record in json_records(path, options.damage):
        try:
            document = record_document(f"{path} line {number}", record, f"{name}:{number}", options.field)
        except UserError as error:
            options.damage.leave_out(error)
            continue
        yield document


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
                damage.leave_out(error)
                continue
            yield number, record


def _array(path: Path, data: bytes, offset: int, damage: Damage) -> Iterator[tuple[int, dict]]:
    if len(data) >= LARGEST_JSON:
        raise UserError(f"{path} is one JSON array of more than {LARGEST_JSON >> 30} GiB; write JSON lines, an object a line")
    for number, record in enumerate(_json(str(path), files.decode(path, data, offset)), 1):
        if isinstance(record, dict):
            yield number, record
        else:
            damage.leave_out(UserError(f"{path} item {number} is no JSON object; write one an item, with the text in a field"))


def _json(place: str, content: str):
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # ValueError also for a number with too many digits
        reason = getattr(error, "msg", None) or str(error)
        raise UserError(f"{place} is no JSON ({reason}); write one JSON object a line") from error


def record_document(place: str, record: dict, name: str, field: str) -> Document:
    """A record as a document, named by its "id" if it has one."""
    if field not in record:
        have = ", ".join(map(str, list(record)[:8])) or "none"
        raise UserError(f"{place} has no field {field!r} (it has: {have}); set data.field")
    value = record[field]
    if value is None:
        raise UserError(f"{place}: {field!r} is null; give it a text (it may be empty) or remove the record")
    if not isinstance(value, str):
        raise UserError(f"{place}: {field!r} is {type(value).__name__}, not text; set data.field")
    own = record.get("id")
    return Document(str(own) if isinstance(own, str | int) else name, _sound(value))


def _sound(value: str) -> str:
    """Replaces lone surrogates, which JSON can contain but which are not characters, by U+FFFD."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def table_of_text(path: Path, name: str, options: Options) -> Iterator[Document]:
    """A .csv or .tsv with a header line: the text of each row is in the column `options.field`."""
    with files.opened(path) as stream:
        lines = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        rows = csv.DictReader(lines, delimiter="\t" if files.suffix(path) == ".tsv" else ",", strict=True)
        try:
            if options.field not in (rows.fieldnames or ()):
                have = ", ".join((rows.fieldnames or [])[:8]) or "none"
                raise UserError(f"{path} has no column {options.field!r} (it has: {have[:200]}); set data.field")
            for number, row in enumerate(rows, 1):
                try:
                    document = record_document(f"{path} row {number}", row, f"{name}:{number}", options.field)
                except UserError as error:
                    options.damage.leave_out(error)
                    continue
                yield document
        except csv.Error as error:
            raise UserError(f"{path} is no table behind line {rows.line_num} ({error}); quote its fields") from error
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} is not UTF-8 (0x{error.object[error.start]:02x} behind line {rows.line_num}); "
                "convert it: iconv -f ENCODING -t UTF-8"
            ) from error


def fasta(path: Path, name: str, options: Options) -> Iterator[Document]:
    """Sequences of a FASTA file as documents of at most 8192 letters, named RECORD:FIRST-LAST, counted from 1.

    Headers, comments and line ends are skipped. Lower-case letters (soft masking) become upper-case.
    """
    record, held, before = "", bytearray(), 0
    with files.opened(path) as stream:
        for number, line in _lines(stream):
            if line[:1] in b">;":
                if line[:1] == b">" and held:
                    yield _sequence(record, held, before)
                if line[:1] == b">":
                    record, held, before = (line[1:].decode(errors="replace").split() or [name])[0], bytearray(), 0
                continue
            letters = b"".join(line.split()).upper()
            if letters and not record:
                raise UserError(f"{path} line {number} stands before the first header; begin each sequence with a line >NAME")
            if letters.translate(None, b"ABCDEFGHIJKLMNOPQRSTUVWXYZ*-"):
                raise UserError(f"{path} line {number} holds what is no letter of a sequence; is it a FASTA file?")
            held += letters
            while len(held) > DNA_DOCUMENT:
                yield _sequence(record, held[:DNA_DOCUMENT], before)
                del held[:DNA_DOCUMENT]
                before += DNA_DOCUMENT
        if held:
            yield _sequence(record, held, before)


def _sequence(record: str, letters: bytes, before: int) -> Document:
    return Document(f"{record}:{before + 1}-{before + len(letters)}", letters.decode())


def _lines(stream) -> Iterator[tuple[int, bytes]]:
    """(number, line). A line longer than a buffer comes in parts; of a long header, only the first part."""
    number, whole, header = 0, True, False
    while line := stream.readline(files.BUFFER):
        number += whole
        line = line.removeprefix(files.BOM) if number == 1 else line
        header = line[:1] in b">;" if whole else header
        if line.strip() and (whole or not header):
            yield number, line
        whole = line.endswith(b"\n")


def table(path: Path, name: str, options: Options) -> Iterator[Document]:
    """The rows of a .parquet or .arrow file, one batch of rows in memory at a time."""
    try:
        import pyarrow
    except ImportError as error:
        raise UserError(f"{path} needs the package pyarrow; pip install 'jaxseq[datasets]'") from error
    files.regular(path)
    number = 0
    try:
        for batch in _batches(path, options.field):
            names = batch.column("id").to_pylist() if "id" in batch.schema.names else [None] * batch.num_rows
            for own, value in zip(names, batch.column(options.field).to_pylist(), strict=True):
                record = {options.field: value} | ({} if own is None or options.field == "id" else {"id": own})
                try:
                    yield record_document(f"{path} row {number}", record, f"{name}:{number}", options.field)
                except UserError as error:
                    options.damage.leave_out(error)
                number += 1
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is no table from row {number} on ({reason}); it is damaged: fetch it again") from error


def _batches(path: Path, field: str) -> Iterator:
    """Record batches with the columns that are wanted. An .arrow file is a stream (as `datasets` writes) or a file."""
    import pyarrow
    import pyarrow.parquet

    def wanted(columns) -> list[str]:
        if field not in columns:
            raise UserError(f"{path} has no column {field!r} (it has: {', '.join(columns[:8]) or 'none'}); set data.field")
        return [field, "id"] if "id" in columns and field != "id" else [field]

    if files.suffix(path) == ".parquet":
        with pyarrow.parquet.ParquetFile(path) as opened:
            yield from opened.iter_batches(batch_size=1024, columns=wanted(opened.schema_arrow.names))
        return
    with pyarrow.memory_map(str(path)) as mapped:
        try:
            opened = pyarrow.ipc.open_stream(mapped)
        except pyarrow.ArrowInvalid:
            opened = pyarrow.ipc.open_file(mapped)
            batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
        else:
            batches = opened
        columns = wanted(opened.schema.names)
        for batch in batches:
            yield batch.select(columns)


def token_ids(path: Path, name: str, options: Options) -> Iterator[TokenDocument]:
    """nanoGPT's .bin: token ids, uint16, end to end. The boundary's id ends a document; one without it is cut."""
    if options.boundary is None:
        raise UserError(f"{path} holds token ids; set data.tokenizer to the file that they were made with")
    files.regular(path)
    if (size := path.stat().st_size) % 2:
        raise UserError(f"{path} has {size} bytes, which is no number of uint16 ids; write it as nanoGPT's prepare.py does")
    ids = np.memmap(path, "<u2", "r") if size else np.zeros(0, "<u2")
    start, block = 0, PIECE_BYTES
    while start < len(ids):
        ends = np.flatnonzero(ids[start : start + block] == options.boundary)
        end = start + int(ends[0]) if len(ends) else min(len(ids), start + block)
        if end > start:
            yield TokenDocument(f"{name}:{start}", ids[start:end])
        start = end + bool(len(ends))


READERS: dict[str, Reader] = {
    "text": text, "jsonl": json_lines, "csv": table_of_text, "fasta": fasta, "table": table, "tokens": token_ids,
}  # fmt: skip
KINDS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "csv", ".fa": "fasta", ".fasta": "fasta",
    ".fna": "fasta", ".ffn": "fasta", ".faa": "fasta", ".parquet": "table", ".arrow": "table", ".bin": "tokens",
}  # fmt: skip


def kind(path: Path) -> str:
    """The reader for a file by its suffix, in any case; "text" for unknown suffixes."""
    found = KINDS.get(files.suffix(path), "text")
    return "text" if found in ("table", "tokens") and files.compressed(path) else found


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
