"""A dataset on disk: a folder written by `save_to_disk`, or .parquet / .arrow files. Needs the extra `datasets`."""

from ml_collections import ConfigDict

from jaxseq.data import files
from jaxseq.data.sources import Source, folder, open_file


def open(config: ConfigDict, boundary: int | None) -> Source:
    if files.existing(config.path).is_dir():
        return folder.open(config, boundary)
    return open_file("table", config, boundary)
