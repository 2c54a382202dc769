"""How a run is asked to stop, and how it says where it did."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class Stopped(Exception):
    """Raised between the pieces of an evaluation when the run has been asked to stop."""


@contextlib.contextmanager
def terminated() -> Iterator[Callable[[], int]]:
    """Yields a function that gives the number of the signal that asked for a stop (SIGTERM, or Ctrl-C's SIGINT), 0 for none.

    Only the main thread can ask for signals. A second one ends the process at once. Who else is told of signals (see
    signal.set_wakeup_fd) is not within it: a run takes the time to save that it needs.
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
