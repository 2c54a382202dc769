"""A progress bar for reading, on standard error."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

PATIENCE = 1.5  # seconds before the bar appears


@contextlib.contextmanager
def bar(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar over `total` bytes, None if unknown, that appears after PATIENCE seconds. Yields a function that adds bytes."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    task, began = progress.add_task(title, total=total), time.monotonic()

    def advance(count: int) -> None:
        if time.monotonic() - began > PATIENCE:
            progress.start()
        progress.advance(task, count)

    try:
        yield advance
    finally:
        if progress.live.is_started:
            progress.stop()
