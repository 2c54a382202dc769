"""More places for a run's figures than metrics.jsonl and TensorBoard, one file each; train.logger names one.

A logger is a module with two functions. `check()` raises UserError if the logger cannot be used here. `start(workdir, config)`
takes a config with dotted keys and returns an object with `write(step, scalars)` and `close()`; it may raise UserError too.
"""

from pathlib import Path
from typing import Any

from jaxseq import registry


def check(name: str | None) -> None:
    """Raises UserError for a logger that does not exist or cannot be used here."""
    if name:
        registry.load("train.loggers", name).check()


def start(name: str | None, workdir: Path, config: dict[str, Any]):
    """The logger of that name; None if the name is empty."""
    return registry.load("train.loggers", name).start(workdir, config) if name else None
