"""Loggers in addition to metrics.jsonl and TensorBoard, one file each; train.logger names one.

A logger is a module with two functions. `check()` raises UserError if the logger cannot be used here. `start(workdir, config)`
takes a config with dotted keys and returns a `Logger`; it may raise UserError too.
"""

from pathlib import Path
from typing import Any, Protocol

from jaxseq import registry


class Logger(Protocol):
    """Receives the figures of a run; returned by `start`."""

    def write(self, step: int, scalars: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def check(name: str | None) -> None:
    """Raises UserError for a logger that does not exist or cannot be used here."""
    if name:
        registry.load("train.loggers", name).check()


def start(name: str | None, workdir: Path, config: dict[str, Any]) -> Logger | None:
    """The logger of that name; None if the name is empty."""
    return registry.load("train.loggers", name).start(workdir, config) if name else None
