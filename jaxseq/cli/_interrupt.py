"""A long command that is stopped says how to go on, and ends with the status of the signal, in a bounded time."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from rich.console import Console

STOPPED = 128  # the exit status of a signal is this and its number
GRACE = 5.0  # seconds after which a stop that was not heard is made


@contextlib.contextmanager
def bounded(line: Callable[[], str]) -> Iterator[None]:
    """Within it a stop (SIGTERM or Ctrl-C) that Python has not acted on after GRACE seconds is made all the same, with `line`.

    Python acts on signals between two of its own instructions, and compiling a large model can be one of them for minutes.
    The kernel's part is done at once: a byte in a pipe, which a thread reads. A training that has begun is left alone: see
    `jaxseq.train.stopping`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard, (reader, writer) = threading.Event(), os.pipe()

    def watch() -> None:
        while number := os.read(reader, 1):
            if number[0] in (signal.SIGTERM, signal.SIGINT) and not heard.wait(GRACE):
                print(line(), file=sys.stderr, flush=True)
                os._exit(STOPPED + number[0])

    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        heard.set()
        signal.set_wakeup_fd(before)
        os.close(writer)
        thread.join()
        os.close(reader)


@contextlib.contextmanager
def stoppable(console: Console) -> Iterator[None]:
    """SIGTERM stops as Ctrl-C does. What is done must be on disk at any moment."""
    from jaxseq.compare.engine import Interrupted

    received = []

    def terminate(number, frame):
        received.append(number)
        raise KeyboardInterrupt

    line = "stopped; run the same command again to go on, nothing that is done is repeated"
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with bounded(lambda: line):
            yield
    except (Interrupted, KeyboardInterrupt) as error:
        console.print(line, highlight=False)
        number = getattr(error, "signal", 0) or (received or [signal.SIGINT])[0]
        raise SystemExit(STOPPED + number) from None
    finally:
        signal.signal(signal.SIGTERM, before)
