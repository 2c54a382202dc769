"""The record of a run: DIR/metrics.jsonl, one JSON object a logged step, and the same numbers for TensorBoard."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import psutil
import tensorboardX


class MetricsWriter:
    """Appends records to a workdir. Opened at step s, it first drops what an earlier process wrote after s.

    So a run that was killed after its last checkpoint and started again leaves one line a step, none missing.
    """

    def __init__(self, workdir: str | os.PathLike, step: int):
        self.path = Path(workdir) / "metrics.jsonl"
        truncate(self.path, step)
        self.file = self.path.open("a")
        self.board = tensorboardX.SummaryWriter(str(workdir), purge_step=step + 1 if step else None)

    def write(self, record: dict[str, Any]) -> None:
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                self.board.add_scalar(name, value, record["step"])

    def sync(self) -> None:
        """Everything written so far is on disk: call it before a checkpoint that lies after it."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
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
