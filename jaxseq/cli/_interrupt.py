"""Stopping a long command: it says how to resume and exits with the signal's status, within a bounded time."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from rich.console import Console

from jaxseq.cli import STOPPED
from jaxseq.errors import interrupted

GRACE = 4.0  # seconds that Python has to act on a signal before the process is ended


@contextlib.contextmanager
def bounded(line: Callable[[], str]) -> Iterator[None]:
    """Inside this context, if Python has not acted on SIGTERM or Ctrl-C after GRACE seconds, prints `line` and exits.

    Python runs signal handlers only between bytecode instructions, and compiling a large model can be a single instruction
    for minutes. But a signal also writes a byte to a pipe at once, which a thread reads here. Once training has begun,
    `jaxseq.train.stopping` is responsible instead, until everything is saved.
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
    """Makes SIGTERM stop the command like Ctrl-C. Finished work must be on disk at any moment."""
    from jaxseq.compare.engine import Interrupted

    received = []

    def terminate(number, frame):
        received.append(number)
        raise KeyboardInterrupt

    line = "stopped; run the same command again to resume, finished work is not repeated"
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with bounded(lambda: line):
            yield
    except (Exception, KeyboardInterrupt) as error:
        if not isinstance(error, Interrupted) and not interrupted(error):
            raise
        console.print(line, highlight=False)
        number = getattr(error, "signal", 0) or (received or [signal.SIGINT])[0]
        raise SystemExit(STOPPED + number) from None
    finally:
        signal.signal(signal.SIGTERM, before)
