"""Tables as text: .csv and .tsv with a header line. The text of each row is in the column `options.field`."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from jaxseq.data import files
from jaxseq.data.readers import Document, Options, _records
from jaxseq.errors import UserError

SUFFIXES = (".csv", ".tsv")
LARGEST_FIELD = 1 << 27  # characters

csv.field_size_limit(LARGEST_FIELD)


def read(path: Path, name: str, options: Options) -> Iterator[Document]:
    with files.opened(path) as stream:
        lines = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        rows = csv.DictReader(lines, delimiter="\t" if files.suffix(path) == ".tsv" else ",", strict=True)
        try:
            _records.check_field(path, "column", rows.fieldnames or (), options.field)
            yield from _records.documents(enumerate(rows, 1), path, "row", name, options)
        except csv.Error as error:
            raise UserError(f"{path} is not a table after line {rows.line_num} ({error}); quote its fields") from error
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} is not UTF-8 (0x{error.object[error.start]:02x} after line {rows.line_num}); "
                "convert it: iconv -f ENCODING -t UTF-8"
            ) from error
