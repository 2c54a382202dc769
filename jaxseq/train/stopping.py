"""Signals that ask a run to stop, and the exception that stops an evaluation."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class Stopped(Exception):
    """Raised between the pieces of an evaluation when the run has been asked to stop."""


@contextlib.contextmanager
def terminated() -> Iterator[Callable[[], int]]:
    """Yields a function that returns the number of the signal that asked for a stop (SIGTERM, or Ctrl-C's SIGINT), or 0.

    Only the main thread can handle signals. A second signal ends the process at once. Other listeners
    (signal.set_wakeup_fd) are switched off inside this context, so that a run has the time it needs to save.
    """
    received: list[int] = []
    asked = lambda: received[0] if received else 0  # noqa: E731
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def receive(number: int, frame) -> None:
        received.append(number)
        signal.signal(number, before[number])

    told = signal.set_wakeup_fd(-1)
    for number in before:
        signal.signal(number, receive)
    try:
        yield asked
    finally:
        signal.set_wakeup_fd(told)
        for number, handler in before.items():
            signal.signal(number, handler)
