"""Records that cannot be used: named, counted, and left out as long as there are no more of them than data.skip_records.

A record is a line, a row, a document of a text or an image. A file that cannot be read on (one that is cut off, say) has no
records to leave out: it ends the run in any case.
"""

import threading

from jaxseq.errors import UserError

NAMED = 3  # in a line


class Damage:
    """What was left out of one source in one pass. allowed: how many records may be."""

    def __init__(self, allowed: int = 0):
        self.allowed, self.found, self._lock = allowed, {}, threading.Lock()

    def begin(self) -> None:
        """A new pass over the source."""
        self.found = {}

    def leave_out(self, error: UserError, key=None) -> None:
        """One record more, unless it was left out before; it is known by its key, else by its error, which names its place.
        Raises the error when it is one too many."""
        with self._lock:
            key = str(error) if key is None else key
            if key not in self.found and len(self.found) >= self.allowed:
                if not self.allowed:
                    raise error
                raise UserError(
                    f"{error}; data.skip_records={self.allowed} are left out already, raise it if so many may be"
                ) from error
            self.found[key] = str(error)

    def told(self) -> list[str]:
        return list(self.found.values())


def describe(name: str, told: list[str]) -> str:
    """A line about what was left out of a source."""
    more = f" | and {len(told) - NAMED} more" if len(told) > NAMED else ""
    return f"{name}: {len(told)} damaged record(s) left out (data.skip_records): {' | '.join(told[:NAMED])}{more}"
