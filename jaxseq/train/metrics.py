"""The record of a run: DIR/metrics.jsonl, one JSON object a logged step, and the same numbers for TensorBoard."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import psutil
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import register_writer_factory
from tensorboardX.summary import hparams, scalar, text

from jaxseq import paths

SECONDS = 30  # between two times that records are sent to a bucket, where each takes some requests
log = logging.getLogger(__name__)


class MetricsWriter:
    """Appends records to a workdir. Opened at step s, it first drops what an earlier process wrote after s.

    So a run that was killed after its last checkpoint and started again leaves one line a step, none missing. Of several
    processes the first alone writes. TensorBoard's events are written here and now: the thread that tensorboardX's
    SummaryWriter keeps for them dies on a full disk, and whoever feeds it then waits for ever.

    TensorBoard gets the scalars in two groups, train/ and validation/, and `summaries` (the config) first. logger: one more
    to be told, see `loggers`.
    """

    def __init__(self, workdir: str | os.PathLike, step: int, summaries: Iterable = (), logger=None):
        self.file = self.board = self.logger = None
        if jax.process_index():
            return
        self.path, self.sent = paths.of(workdir) / "metrics.jsonl", time.monotonic()
        self.board = EventsWriter(os.fspath(paths.of(workdir) / "events"))
        self.rewind(step)
        self.logger = logger
        for summary in summaries:
            self.board.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def rewind(self, step: int) -> None:
        """Drops what was written after `step`, in TensorBoard too; goes on from there."""
        if self.board is None:
            return
        if self.file is not None:
            self.file.close()
        truncate(self.path, step)
        self.file = paths.appending(self.path)
        self.board.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, record: dict[str, Any]) -> None:
        if self.file is None:
            return
        self.file.write(_lines([record]).encode())
        self.show(record["step"], record)
        if not paths.is_remote(self.path):
            self.file.flush()
        elif time.monotonic() - self.sent > SECONDS:
            self.sync()

    def add(self, step: int, figures: dict[str, Any]) -> dict[str, Any] | None:
        """Adds figures to the record of `step`, the last one, or makes it; returns it, where this process writes."""
        if self.file is None:
            return None
        self.file.close()
        records, _ = parsed(self.path)
        last = records.pop() if records and records[-1]["step"] == step else {"step": step}
        last |= figures
        _replace(self.path, [*records, last])
        self.file = paths.appending(self.path)
        self.show(step, figures)
        return last

    def show(self, step: int, figures: dict[str, Any]) -> None:
        """Figures for those who watch: TensorBoard, and the logger if there is one."""
        scalars = {grouped(name): value for name, value in figures.items() if name != "step"}
        for name, value in scalars.items():
            self.board.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        if self.logger is not None:
            self.logger.write(step, scalars)

    def sync(self) -> None:
        """Everything written so far is on disk: call it before a checkpoint that lies after it."""
        if self.file is not None:
            paths.sync(self.file)
            self.board.flush()
            self.sent = time.monotonic()

    def close(self) -> None:
        if self.file is None:
            return
        with contextlib.ExitStack() as each:  # the last first, each of them whatever became of the others
            each.callback(self.board.close)
            each.callback(self.file.close)
            if self.logger is not None:
                each.callback(self.logger.close)


def grouped(name: str) -> str:
    """A figure's name in TensorBoard: "validation/loss", "time/compile", "train/loss"."""
    group, _, rest = name.partition("_")
    return f"{group}/{rest}" if group in ("validation", "time") else f"train/{name}"


def described(config: dict[str, Any], figures: Iterable[str]) -> list:
    """A config of dotted keys as TensorBoard's text, and as its hyper-parameters beside the scalars of these names."""
    table = "\n".join(["| field | value |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in config.items())])
    plain = {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in config.items()}
    return [text("config", table), *hparams(plain, {grouped(name): 0.0 for name in figures})]


def read(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a workdir, in the order of their steps."""
    records, _ = parsed(paths.of(workdir) / "metrics.jsonl")
    return records


def parsed(path: Path) -> tuple[list[dict[str, Any]], int]:
    """(the records of a file, how many lines are none: blank, cut off, or filled with zeros by a crash)."""
    records, broken = [], 0
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            record = json.loads(line)
            record["step"] + 0  # a number
            records.append(record)
        except (ValueError, TypeError, KeyError, RecursionError):
            broken += bool(line)
    return records, broken


def truncate(path: Path, step: int) -> None:
    """Drops the records after `step`, lines that are no record and one that was cut off, in one move."""
    if not path.exists():
        return
    records, broken = parsed(path)
    kept = [record for record in records if record["step"] <= step]
    if broken:
        log.info("%s: %d line(s) that are no record are left out", path, broken)
    if path.read_bytes() != _lines(kept).encode():
        _replace(path, kept)


def _lines(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _replace(path: Path, records: list[dict[str, Any]]) -> None:
    paths.write(path, _lines(records), sync=True)


class _EventFiles:
    """tensorboardX's files in a bucket: it would send all of a file again whenever some of it is new."""

    def open(self, path: str):
        return paths.appending(paths.of(path))

    def directory_check(self, path: str) -> None:
        pass


register_writer_factory("gs", _EventFiles())


def memory() -> dict[str, int]:
    """Bytes: resident memory of this process, and the most that its fullest device held, where the backend says."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [entry["peak_bytes_in_use"] for entry in stats if "peak_bytes_in_use" in entry]
    resident = {"memory_bytes": psutil.Process().memory_info().rss}
    return resident | ({"device_memory_bytes": max(peaks)} if peaks else {})
