"""Metrics of a run: DIR/metrics.jsonl, with one JSON object per logged step, and the same numbers for TensorBoard."""

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
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]  made at import
from tensorboardX.record_writer import register_writer_factory
from tensorboardX.summary import hparams, scalar, text

from jaxseq import paths

SECONDS = 30  # between two uploads of records to a bucket; each takes several requests
log = logging.getLogger(__name__)


class MetricsWriter:
    """Appends records to a workdir. Opened at step s, it first removes the records that an earlier process wrote after s.

    A run that is killed and resumed from a checkpoint thus has exactly one line per logged step. Only the first of several
    processes writes. TensorBoard events are written in this thread: tensorboardX's SummaryWriter uses a background thread, which
    dies on a full disk and then blocks its caller forever.

    summaries: written to TensorBoard first (the config). logger: gets the same scalars, see `loggers`.
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
        """Removes the records after `step`, also in TensorBoard."""
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
        """Adds figures to the record of `step`, the last one, or creates it. Returns it; None if this process does not write."""
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
        """Sends figures to TensorBoard and, if there is one, to the logger."""
        if self.board is None:
            return
        scalars = {grouped(name): value for name, value in figures.items() if name != "step"}
        for name, value in scalars.items():
            self.board.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        if self.logger is not None:
            self.logger.write(step, scalars)

    def sync(self) -> None:
        """Syncs the records to disk. Call it before saving a checkpoint, so that no record before it is missing."""
        if self.file is not None and self.board is not None:
            paths.sync(self.file)
            self.board.flush()
            self.sent = time.monotonic()

    def close(self) -> None:
        if self.file is None or self.board is None:
            return
        with contextlib.ExitStack() as each:  # in reverse order; each is closed even if another fails
            each.callback(self.board.close)
            each.callback(self.file.close)
            if self.logger is not None:
                each.callback(self.logger.close)


def grouped(name: str) -> str:
    """A figure's name in TensorBoard: "validation/loss", "time/compile", "train/loss"."""
    group, _, rest = name.partition("_")
    return f"{group}/{rest}" if group in ("validation", "time") else f"train/{name}"


def _utf8(text: str) -> str:
    """`text` with escapes for what UTF-8 cannot hold: a path may have bytes that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def described(config: dict[str, Any], figures: Iterable[str]) -> list:
    """A config with dotted keys as TensorBoard's text, and as hyper-parameters for the scalars with these names."""
    table = "\n".join(["| field | value |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in config.items())])
    plain = {key: value if isinstance(value, bool | int | float) else _utf8(str(value)) for key, value in config.items()}
    return [text("config", _utf8(table)), *hparams(plain, {grouped(name): 0.0 for name in figures})]


def read(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a workdir, ordered by step."""
    records, _ = parsed(paths.of(workdir) / "metrics.jsonl")
    return records


def parsed(path: Path) -> tuple[list[dict[str, Any]], int]:
    """(the records of a file, the number of other lines: truncated, or filled with zeros by a crash)."""
    records, broken = [], 0
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            record = json.loads(line)
            _ = record["step"] + 0  # a number
            records.append(record)
        except (ValueError, TypeError, KeyError, RecursionError):
            broken += bool(line)
    return records, broken


def truncate(path: Path, step: int) -> None:
    """Removes, in one atomic write, the records after `step` and the lines that are not records."""
    if not path.exists():
        return
    records, broken = parsed(path)
    kept = [record for record in records if record["step"] <= step]
    if broken:
        log.info("%s: removed %d line(s) that are not records", path, broken)
    if path.read_bytes() != _lines(kept).encode():
        _replace(path, kept)


def _lines(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _replace(path: Path, records: list[dict[str, Any]]) -> None:
    paths.write(path, _lines(records), sync=True)


class _EventFiles:
    """tensorboardX's files in a bucket, written by appending. Its own class uploads the whole file again for each event."""

    def open(self, path: str):
        return paths.appending(paths.of(path))

    def directory_check(self, path: str) -> None:
        pass


register_writer_factory("gs", _EventFiles())


def memory() -> dict[str, int]:
    """Bytes: resident memory of this process and, if the backend reports it, the peak memory of its fullest device."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [entry["peak_bytes_in_use"] for entry in stats if "peak_bytes_in_use" in entry]
    resident = {"memory_bytes": psutil.Process().memory_info().rss}
    return resident | ({"device_memory_bytes": max(peaks)} if peaks else {})
