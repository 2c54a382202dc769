"""The record of a run: DIR/metrics.jsonl, one JSON object a logged step, and the same numbers for TensorBoard."""

import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import psutil
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar


class MetricsWriter:
    """Appends records to a workdir. Opened at step s, it first drops what an earlier process wrote after s.

    So a run that was killed after its last checkpoint and started again leaves one line a step, none missing. Of several
    processes the first alone writes. TensorBoard's events are written here and now: the thread that tensorboardX's
    SummaryWriter keeps for them dies on a full disk, and whoever feeds it then waits for ever.
    """

    def __init__(self, workdir: str | os.PathLike, step: int):
        self.file = self.board = None
        if jax.process_index():
            return
        path = Path(workdir) / "metrics.jsonl"
        truncate(path, step)
        self.file = path.open("a")
        self.board = EventsWriter(str(Path(workdir) / "events"))
        self.board.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, record: dict[str, Any]) -> None:
        if self.file is None:
            return
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        for name, value in record.items():
            if name != "step":
                self.board.write_event(Event(wall_time=time.time(), step=record["step"], summary=scalar(name, value)))

    def sync(self) -> None:
        """Everything written so far is on disk: call it before a checkpoint that lies after it."""
        if self.file is not None:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.board.flush()

    def close(self) -> None:
        if self.file is not None:
            try:
                self.file.close()
            finally:
                self.board.close()


def read(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a workdir, in the order of their steps."""
    path = Path(workdir) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def truncate(path: Path, step: int) -> None:
    """Drops the records after `step`, and a last line that a killed process left unfinished, in one move."""
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    if kept != lines:
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_text("".join(kept))
        draft.replace(path)


def memory() -> dict[str, int]:
    """Bytes: resident memory of this process, and the most that its fullest device held, where the backend says."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [entry["peak_bytes_in_use"] for entry in stats if "peak_bytes_in_use" in entry]
    resident = {"memory_bytes": psutil.Process().memory_info().rss}
    return resident | ({"device_memory_bytes": max(peaks)} if peaks else {})
