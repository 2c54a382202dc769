"""Files of token ids, as nanoGPT writes them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxseq.data import files
from jaxseq.data.readers import PIECE_BYTES, Options, TokenDocument
from jaxseq.errors import UserError

SUFFIXES = (".bin",)
BINARY = True


def read(path: Path, name: str, options: Options) -> Iterator[TokenDocument]:
    """nanoGPT's .bin: token ids, uint16, end to end. A document ends at the boundary's id, or after PIECE_BYTES ids."""
    if options.boundary is None:
        raise UserError(f"{path} holds token ids; set data.tokenizer to the file that they were made with")
    files.regular(path)
    if (size := path.stat().st_size) % 2:
        raise UserError(f"{path} has {size} bytes, so it does not hold uint16 ids; write it as nanoGPT's prepare.py does")
    ids = np.memmap(path, "<u2", "r") if size else np.zeros(0, "<u2")
    start, block = 0, PIECE_BYTES
    while start < len(ids):
        ends = np.flatnonzero(ids[start : start + block] == options.boundary)
        end = start + int(ends[0]) if len(ends) else min(len(ids), start + block)
        if end > start:
            yield TokenDocument(f"{name}:{start}", ids[start:end])
        start = end + bool(len(ends))
