"""Tables of the datasets library: .parquet and .arrow files."""

from collections.abc import Iterator
from pathlib import Path

from jaxseq.data import files
from jaxseq.data.readers import Document, Options, _records
from jaxseq.errors import UserError

SUFFIXES = (".parquet", ".arrow")
BINARY = True


def read(path: Path, name: str, options: Options) -> Iterator[Document]:
    """A document per row; one batch of rows is in memory at a time."""
    try:
        import pyarrow
    except ImportError as error:
        raise UserError(f"{path} needs the package pyarrow; pip install 'jaxseq[datasets]'") from error
    files.regular(path)
    number = 0

    def rows() -> Iterator[tuple[int, dict]]:
        nonlocal number
        for batch in _batches(path, options.field):
            for record in batch.to_pylist():
                yield number, record
                number += 1

    try:
        yield from _records.documents(rows(), path, "row", name, options)
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is not a table from row {number} on ({reason}); it is damaged: fetch it again") from error


def _batches(path: Path, field: str) -> Iterator:
    """Record batches with the columns that are wanted. An .arrow file is a stream (as `datasets` writes) or a file."""
    import pyarrow
    import pyarrow.parquet

    def wanted(columns) -> list[str]:
        _records.check_field(path, "column", columns, field)
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
