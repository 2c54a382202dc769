"""Damaged records: skipped and counted, up to data.skip_records of them; one more is an error.

A record is a line, a row, a document of a text, or an image. If the rest of a file cannot be read (it is truncated, for example),
that is always an error.
"""

import threading
from collections.abc import Hashable

from jaxseq.errors import UserError

NAMED = 3  # in a message


class Damage:
    """The records of one source that were skipped in one pass. allowed: the most records to skip."""

    def __init__(self, allowed: int = 0):
        self.allowed, self.found, self._lock = allowed, {}, threading.Lock()

    def begin(self) -> None:
        """Starts a new pass over the source."""
        self.found = {}

    def skip(self, error: UserError, key: Hashable | None = None) -> None:
        """Skips a record, or raises its error if too many were skipped.

        key: identifies the record, so that it is counted once; None: its error message, which names its place.
        """
        with self._lock:
            key = str(error) if key is None else key
            if key not in self.found and len(self.found) >= self.allowed:
                if not self.allowed:
                    raise error
                raise UserError(f"{error}; {self.allowed} records are skipped already, raise data.skip_records") from error
            self.found[key] = str(error)

    def messages(self) -> list[str]:
        return list(self.found.values())


def describe(name: str, messages: list[str]) -> str:
    """A line about the skipped records of a source."""
    more = f" | and {len(messages) - NAMED} more" if len(messages) > NAMED else ""
    return f"{name}: {len(messages)} damaged record(s) skipped (data.skip_records): {' | '.join(messages[:NAMED])}{more}"
