"""Signals that ask a run to stop, and the exception that stops an evaluation."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Stopped(Exception):
    """Raised between batches of an evaluation when the run has been asked to stop."""


class Asked:
    """A callable that returns the number of the first signal that asked for a stop, or 0."""

    def __init__(self):
        self.number, self.listener = 0, -1

    def __call__(self) -> int:
        return self.number

    @contextlib.contextmanager
    def all_saved(self) -> Iterator[None]:
        """For code that runs when everything is saved: the listener that `terminated` switched off receives signals again, and
        may end the process at once."""
        if self.listener < 0:
            yield
            return
        signal.set_wakeup_fd(self.listener, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)


@contextlib.contextmanager
def terminated() -> Iterator[Asked]:
    """Yields an `Asked`, which reports SIGTERM and Ctrl-C (SIGINT).

    Only the main thread can handle signals. A second signal ends the process at once. Another listener
    (signal.set_wakeup_fd) is switched off inside this context, so that a run has the time it needs to save.
    """
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def receive(number: int, frame) -> None:
        asked.number = asked.number or number
        signal.signal(number, before[number])

    asked.listener = signal.set_wakeup_fd(-1)
    for number in before:
        signal.signal(number, receive)
    try:
        yield asked
    finally:
        signal.set_wakeup_fd(asked.listener)
        for number, handler in before.items():
            signal.signal(number, handler)
