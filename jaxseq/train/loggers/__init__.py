"""More places for a run's figures than metrics.jsonl and TensorBoard, one file each; train.logger names one.

A logger is a module of two functions: `check()`, which raises UserError when it cannot work here, and
`start(workdir, config)`, config with dotted keys, which returns an object with `write(step, scalars)` and `close()`.
"""

from pathlib import Path
from typing import Any

from jaxseq import registry


def check(name: str | None) -> None:
    """Raises UserError for a logger that there is not, or that cannot work here."""
    if name:
        registry.load("train.loggers", name).check()


def start(name: str | None, workdir: Path, config: dict[str, Any]):
    """The logger of that name, or None without one."""
    return registry.load("train.loggers", name).start(workdir, config) if name else None
