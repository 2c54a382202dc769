"""Built in: 233 State of the Union addresses, 10.8 MB."""

import functools

from ml_collections import ConfigDict

from jaxseq.data import files, readers
from jaxseq.data.sources import ASSETS, Source

BUILT_IN = True


def open(config: ConfigDict, boundary: int | None) -> Source:
    path = ASSETS / "sotu.jsonl.xz"
    read = functools.partial(readers.read, "jsonl", path, path.name, readers.Options("text"))
    return Source("sotu", read, path.stat().st_size, False, files.stamp([path]))
