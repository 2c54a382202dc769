"""Where documents come from: the two built-in corpora, files, folders and Hugging Face datasets.

A source is opened cheaply (it looks at names and sizes) and read lazily, document by document and in a fixed order.
Documents without text are passed over. Every fault of the input is a `UserError` that names the file and the place in
it.
"""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxseq.data import files
from jaxseq.errors import UserError

ASSETS = Path(__file__).parent / "assets"
DNA_DOCUMENT = 8192  # bases
SEPARATOR = b"<|endoftext|>"
PIECES = 5  # a lone text is cut into at least about this many pieces a validation document
PIECE_BYTES = 1 << 16  # and into pieces of at most about this size


class Document(NamedTuple):
    id: str
    text: str


class Source(NamedTuple):
    """An opened source.

    name: for messages. read: starts a pass over the documents. size: bytes on disk. plain: whether `size` is about
    the size of the text (False if compressed). stamp: JSON-able; changes when the documents do (names, sizes,
    modification times, options).
    """

    name: str
    read: Callable[[], Iterator[Document]]
    size: int
    plain: bool
    stamp: list


def _sotu(config) -> Source:
    """Built in: 233 State of the Union addresses, 10.8 MB."""
    path = ASSETS / "sotu.jsonl.xz"
    return Source("sotu", lambda: _json_lines(path, "text"), path.stat().st_size, False, files.stamp([path]))


def _dna(config) -> Source:
    """Built in: the E. coli K-12 genome as documents of 8192 bases, A C G T."""
    path = ASSETS / "ecoli_mg1655.2bit"

    def read() -> Iterator[Document]:
        packed = np.fromfile(path, np.uint8)
        bases = np.frombuffer(b"ACGT", np.uint8)[(packed[:, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3].reshape(-1)
        for start in range(0, bases.size, DNA_DOCUMENT):
            piece = bases[start : start + DNA_DOCUMENT].tobytes().decode()
            yield Document(f"U00096.3:{start + 1}-{start + len(piece)}", piece)

    return Source("dna", read, path.stat().st_size, False, files.stamp([path]))


def _text(config) -> Source:
    """One text file, plain or .gz, .bz2, .xz, .zst.

    Lines of "<|endoftext|>" separate documents where the file has them. A file without them is one long text (a book,
    tiny Shakespeare): it is cut into pieces, at blank lines if possible, else at line ends, spaces or characters,
    because a validation split needs documents. A piece is about 1 / (5 validation_every) of the file and at most 64
    KiB.
    """
    path = files.existing(config.path)
    if path.is_dir():
        raise UserError(f"data.path={path} is a folder; set data.source=folder, or name one file")

    def read() -> Iterator[Document]:
        with files.mapped(path) as data:
            files.refuse_binary(path, data)
            for start, end in _pieces(data, max(1, config.validation_every)):
                yield Document(f"{path.name}:{start}", files.decode(path, data[start:end], start))

    stamp = [*files.stamp([path]), config.validation_every]
    return Source(str(path), read, path.stat().st_size, not files.compressed(path), stamp)


def _pieces(data, validation_every: int) -> Iterator[tuple[int, int]]:
    """[start, end) of each document of a text, in bytes. `data` is bytes or an mmap."""
    size = len(data)
    start = len(files.BOM) if data[: len(files.BOM)] == files.BOM else 0
    if data.find(SEPARATOR) >= 0:
        while start < size:
            end = data.find(SEPARATOR, start)
            end = size if end < 0 else end
            head = start + (data[start : start + 1] == b"\n" and start > 0)
            tail = end - (data[end - 1 : end] == b"\n" and end - 1 >= head)
            if head < tail:
                yield head, tail
            start = end + len(SEPARATOR)
        return
    target = max(1, min(PIECE_BYTES, size // (PIECES * validation_every)))
    while start < size:
        end = _cut(data, start + target, min(size, start + 2 * target)) if size - start > target else size
        yield start, end
        start = end


def _cut(data, low: int, high: int) -> int:
    """Where in [low, high] to end a piece: behind a blank line, a line end, a space, or else between characters."""
    for pattern in (b"\n\n", b"\n\r\n", b"\n", b" "):
        at = data.find(pattern, low - len(pattern), high)
        if at >= 0:
            return at + len(pattern)
    while low < len(data) and data[low] & 0xC0 == 0x80:  # a continuation byte of UTF-8
        low += 1
    return low


def _jsonl(config) -> Source:
    """JSON lines, plain or .gz, .bz2, .xz, .zst: an object a line, its text under `data.field`, its name under "id"."""
    path = files.existing(config.path)
    if path.is_dir():
        raise UserError(f"data.path={path} is a folder; set data.source=folder to read every file under it")
    read = functools.partial(_json_lines, path, config.field)
    return Source(str(path), read, path.stat().st_size, not files.compressed(path), [*files.stamp([path]), config.field])


def json_records(path: Path) -> Iterator[tuple[int, dict]]:
    """(line number, object) of each line that is not blank. Raises UserError naming the line."""
    with files.opened(path) as lines:
        offset = 0
        for number, line in enumerate(lines, 1):
            start, offset = offset, offset + len(line)
            if not line.strip():
                continue
            try:
                record = json.loads(files.decode(path, line.removeprefix(files.BOM) if start == 0 else line, start))
            except json.JSONDecodeError as error:
                raise UserError(f"{path} line {number} is no JSON ({error.msg}); write one JSON object a line") from error
            if not isinstance(record, dict):
                raise UserError(f"{path} line {number} is no JSON object; write one a line, with the text in a field")
            yield number, record


def _json_lines(path: Path, field: str) -> Iterator[Document]:
    for number, record in json_records(path):
        if field not in record:
            have = ", ".join(map(str, list(record)[:8])) or "none"
            raise UserError(f"{path} line {number} has no field {field!r} (it has: {have}); set data.field")
        text = record[field]
        if not isinstance(text, str):
            raise UserError(f"{path} line {number}: {field!r} is {type(text).__name__}, not text; set data.field")
        yield Document(_name(record, path, number), _sound(text))


def _name(record: dict, path: Path, number: int) -> str:
    name = record.get("id")
    return str(name) if isinstance(name, str | int) else f"{path.name}:{number}"


def _sound(text: str) -> str:
    """JSON can spell half of a surrogate pair, which is no character: it becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _folder(config) -> Source:
    """Every file under a folder, by path: each line of a .jsonl file (compressed or not) is a document, any other
    text file is one.

    Hidden files and folders are passed over, and so are binary files (a NUL byte in the first 64 KiB).
    """
    root = files.existing(config.path)
    if not root.is_dir():
        raise UserError(f"data.path={root} is a file; set data.source=text or jsonl, or name a folder")
    found = sorted(path for path in root.rglob("*") if path.is_file() and not _hidden(path.relative_to(root)))
    if not found:
        raise UserError(f"data.path={root} holds no file; put text files there, or name another folder")

    def read() -> Iterator[Document]:
        for path in found:
            name = path.relative_to(root).as_posix()
            if files.is_json_lines(path):
                for document in _json_lines(path, config.field):
                    yield Document(f"{name}#{document.id}", document.text)
                continue
            with files.mapped(path) as data:
                if not files.is_binary(data):
                    yield Document(name, files.decode(path, data[:], 0).removeprefix("\ufeff"))

    plain = not any(files.compressed(path) for path in found)
    size = sum(path.stat().st_size for path in found)
    return Source(str(root), read, size, plain, [*files.stamp(found, root), config.field])


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _huggingface(config) -> Source:
    """A dataset on disk: a folder written by `save_to_disk`, or .parquet / .arrow files. Needs the extra `datasets`.

    Of a dataset with several splits, "train" is read (else the only one); jaxseq takes its own validation documents
    from it.
    """
    path = files.existing(config.path)
    found = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    if not found:
        raise UserError(f"data.path={path} is empty; name a folder written by save_to_disk, or parquet files")

    def read() -> Iterator[Document]:
        rows = _load_dataset(path, found)
        columns = rows.column_names
        if columns is not None and config.field not in columns:
            raise UserError(f"{path} has no column {config.field!r} (it has: {', '.join(columns)}); set data.field")
        for number, row in enumerate(rows):
            text = row[config.field]
            if not isinstance(text, str):
                kind = type(text).__name__
                raise UserError(f"{path} row {number}: {config.field!r} is {kind}, not text; set data.field")
            yield Document(_name(row, path, number), text)

    size = sum(file.stat().st_size for file in found)
    return Source(str(path), read, size, False, [*files.stamp(found, path), config.field])


def _load_dataset(path: Path, found: list[Path]):
    try:
        import datasets
    except ImportError as error:
        raise UserError("data.source=huggingface needs the package datasets; pip install 'jaxseq[datasets]'") from error
    tables = [str(file) for file in found if file.suffix == ".parquet"]
    saved = path.is_dir() and ((path / "dataset_dict.json").exists() or (path / "state.json").exists())
    try:
        if saved:
            rows = datasets.load_from_disk(str(path))
        elif tables:
            rows = datasets.load_dataset("parquet", data_files={"train": tables}, split="train", streaming=True)
        else:
            arrows = [datasets.Dataset.from_file(str(file)) for file in found if file.suffix == ".arrow"]
            rows = datasets.concatenate_datasets(arrows) if arrows else None
    except Exception as error:  # pyarrow and datasets raise classes of their own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} cannot be read as a dataset ({reason}); save it again with save_to_disk") from error
    if rows is None:
        raise UserError(f"{path} holds no dataset; name a folder written by save_to_disk, or .parquet or .arrow files")
    if isinstance(rows, dict):
        if "train" not in rows and len(rows) != 1:
            raise UserError(f"{path} has the splits {', '.join(rows)} and no train; name one's folder in data.path")
        rows = rows["train"] if "train" in rows else next(iter(rows.values()))
    return rows


SOURCES = {
    "sotu": _sotu,
    "dna": _dna,
    "text": _text,
    "jsonl": _jsonl,
    "folder": _folder,
    "huggingface": _huggingface,
}
BUILT_IN = ("sotu", "dna")


def guess(path: Path) -> str:
    """The source that reads `path`, by what it is: a folder of tables or of text, JSON lines, a table, else text."""
    if path.is_dir():
        table = (path / "dataset_dict.json").exists() or (path / "state.json").exists()
        table = table or any(path.rglob("*.parquet")) or any(path.rglob("*.arrow"))
        return "huggingface" if table else "folder"
    if files.is_json_lines(path) or path.suffix == ".json":
        return "jsonl"
    return "huggingface" if path.suffix in (".parquet", ".arrow") else "text"


def source(config) -> Source:
    """Open the source that the config's data section names.

    Args:
        config: the data section; reads `source`, `path`, `field`, `validation_every`. With a path and the default
        source
            ("sotu"), the source is guessed from the path.

    Raises:
        UserError: unknown source; a path that is missing, of the wrong kind, or given to a built-in source.
    """
    name = config.source
    if name not in SOURCES:
        raise UserError(f"data.source={name!r} is unknown; choose one of {', '.join(SOURCES)}")
    if config.path and name == "sotu":
        name = guess(files.existing(config.path))
    if config.path and name in BUILT_IN:
        raise UserError(f"data.source={name} is built in and takes no data.path; leave one of the two out")
    if not config.path and name not in BUILT_IN:
        raise UserError(f"data.source={name} needs a path; set data.path")
    return SOURCES[name](config)
