"""Built in: the E. coli K-12 genome as documents of 8192 bases, A C G T."""

from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from jaxseq.data import files
from jaxseq.data.readers import DNA_DOCUMENT, Document
from jaxseq.data.sources import ASSETS, Source

BUILT_IN = True


def open(config: ConfigDict, boundary: int | None) -> Source:
    path = ASSETS / "ecoli_mg1655.2bit"

    def read() -> Iterator[Document]:
        packed = np.fromfile(path, np.uint8)
        bases = np.frombuffer(b"ACGT", np.uint8)[(packed[:, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3].reshape(-1)
        for start in range(0, bases.size, DNA_DOCUMENT):
            piece = bases[start : start + DNA_DOCUMENT].tobytes().decode()
            yield Document(f"U00096.3:{start + 1}-{start + len(piece)}", piece)

    return Source("dna", read, path.stat().st_size, False, files.stamp([path]))
