"""A long command that is stopped says how to go on, and ends with the status of the signal."""

import contextlib
import signal
from collections.abc import Iterator

from rich.console import Console

STOPPED = 128  # the exit status of a signal is this and its number


@contextlib.contextmanager
def stoppable(console: Console) -> Iterator[None]:
    """SIGTERM stops as Ctrl-C does. What is done must be on disk at any moment."""
    from jaxseq.compare.engine import Interrupted

    received = []

    def terminate(number, frame):
        received.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as error:
        console.print("stopped; run the same command again to go on, nothing that is done is repeated", highlight=False)
        number = getattr(error, "signal", 0) or (received or [signal.SIGINT])[0]
        raise SystemExit(STOPPED + number) from None
    finally:
        signal.signal(signal.SIGTERM, before)
