"""A teacher's largest logits on disk (train.distill_cache), so that training needs no teacher in memory.

A folder with header.json and two arrays, `ids.npy` and `logits.npy` [rows, T, K]: for each token of the first rows of training
data, the K ids with the largest logits, descending, and these logits in float32. The order of the rows depends on the text, the
tokenizer, train.length and data.seed, but not on the batch size; the header names them, and the checkpoint of the teacher.
"""

import hashlib
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxseq import paths
from jaxseq.errors import UserError
from jaxseq.plain_files import json_text, read_object
from jaxseq.train import checkpoints, digests

VERSION = 1
HEADER, IDS, LOGITS = "header.json", "ids.npy", "logits.npy"
ARRAYS = {"taught_ids": np.dtype("int32"), "taught_logits": np.dtype("float32")}  # names in a batch, [b, T, K]


class Header(NamedTuple):
    """teacher: see `digest`. vocab: of the teacher. rows: how many. top_k: K. sequence: what decides the order of the rows."""

    teacher: str
    vocab: int
    rows: int
    top_k: int
    sequence: dict[str, Any]


def digest(workdir: str | os.PathLike) -> str:
    """A digest of the newest checkpoint of a workdir. Raises UserError if it has none, or was saved without digests."""
    step = checkpoints.saved(workdir)[-1]
    folder = checkpoints.folder(workdir) / str(step)
    if not digests.has(folder):
        raise UserError(f"the checkpoint {folder} has no digests, so it cannot be told from others; save it by a newer jaxseq")
    return hashlib.sha256((folder / digests.NAME).read_bytes()).hexdigest()[:32]


def sequence(batches: Any) -> dict[str, Any]:
    """What decides the order of the rows of `data.batches`. Raises UserError for streamed data, which have another order."""
    found = batches.state()
    if "row" not in found:
        raise UserError("rows of data.stream=true have no fixed order, so logits cannot be kept; leave data.stream out")
    return {name: value for name, value in found.items() if name != "row"}


def write_header(folder: Any, header: Header) -> None:
    """Written last: a folder without it is not complete."""
    paths.write(folder / HEADER, json_text({"version": VERSION} | header._asdict(), indent=1) + "\n")


def read_header(name: str) -> Header:
    """Raises UserError if the folder is not a complete cache."""
    file = paths.of(name, f"train.distill_cache={name}") / HEADER
    if not file.exists():
        raise UserError(f"train.distill_cache={name} is not a folder of a teacher's logits; make one by `jaxseq teach`")
    found = read_object(file)
    kinds = Header.__annotations__
    if found.pop("version", None) != VERSION or found.keys() != kinds.keys():
        raise UserError(f"{file} is of another version of jaxseq; write the logits again by `jaxseq teach`")
    if not all(isinstance(found[key], kind) for key, kind in kinds.items() if key != "sequence") or found["top_k"] < 1:
        raise UserError(f"{file} is damaged; write the logits again by `jaxseq teach`")
    return Header(**found)


def check(config: ConfigDict, header: Header) -> None:
    """Raises UserError if the cache is too short for the run, or was made by another teacher or for another vocabulary."""
    train, name = config.train, f"train.distill_cache={config.train.distill_cache}"
    if (wanted := train.steps * train.batch) > header.rows:
        raise UserError(
            f"{name} has {header.rows} rows, but {train.steps} steps of {train.batch} need {wanted}; lower train.steps, or "
            "make a longer one by `jaxseq teach`"
        )
    if config.model.vocab not in (None, header.vocab):
        raise UserError(f"{name} is of a teacher with a vocabulary of {header.vocab}, not {config.model.vocab}; choose another")
    if train.distill_top_k > header.top_k:
        raise UserError(f"{name} holds {header.top_k} logits a token; lower train.distill_top_k={train.distill_top_k}")
    if train.distill_teacher and digest(train.distill_teacher) != header.teacher:
        raise UserError(f"{name} was not written by train.distill_teacher={train.distill_teacher}; leave one of them out")


class TaughtBatches(Iterator):
    """`batches` with the arrays of a cache, of process `index` of `count`; it resumes with them.

    Raises UserError if the rows are not those for which the cache was written.
    """

    def __init__(self, batches: Any, config: ConfigDict, index: int, count: int):
        self.batches, self.index, self.own = batches, index, config.train.batch // count
        folder = paths.of(config.train.distill_cache)
        self.header = header = read_header(config.train.distill_cache)
        own = sequence(batches)
        if wrong := [name for name in {**own, **header.sequence} if own.get(name) != header.sequence.get(name)]:
            what = {"corpus": "text or tokenizer", "length": "train.length", "seed": "data.seed"}
            raise UserError(
                f"train.distill_cache={folder} was written for another {', '.join(what.get(name, name) for name in wrong)}; "
                "train as the command says that wrote it, or write it again"
            )
        self.top_k = config.train.distill_top_k or header.top_k
        self.arrays = [_opened(folder / name, header, own["length"]) for name in (IDS, LOGITS)]

    def __next__(self) -> dict[str, np.ndarray]:
        first = self.batches.row + self.index * self.own
        found = next(self.batches)
        if first + self.own > self.header.rows:  # the loop takes no batch beyond the last step, which `check` has seen
            raise UserError(f"train.distill_cache ends after {self.header.rows} rows; lower train.steps")
        kept = [array[first : first + self.own, :, : self.top_k] for array in self.arrays]
        return found | {name: np.asarray(rows, dtype) for (name, dtype), rows in zip(ARRAYS.items(), kept, strict=True)}

    def state(self) -> dict[str, Any]:
        return self.batches.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.batches.restore(state)


def _opened(file: Any, header: Header, length: int) -> np.ndarray:
    """An array of the cache, memory-mapped. Raises UserError if it is missing or has another shape."""
    shape = (header.rows, length, header.top_k)
    try:
        array = np.lib.format.open_memmap(file, mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); write the logits again by `jaxseq teach`") from None
    if array.shape != shape:
        raise UserError(f"{file} has shape {array.shape}, not {shape}; write the logits again by `jaxseq teach`")
    return array
