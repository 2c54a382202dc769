"""Errors that end a run and are not caused by bad input."""

import errno


class BadStepError(ArithmeticError):
    """A step went bad and the run may not skip it; the message is one line that says what went bad and where."""


class NonFiniteError(BadStepError):
    """A loss, gradient or parameter is no longer a finite number."""


class SpikeError(BadStepError):
    """A loss or gradient is finite but above the limit in the config."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether `error` or its cause means that the disk is full (tensorstore, used by Orbax, says so only in the text)."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(text in str(error) for text in ("No space left on device", "Disk quota exceeded")):
            return True
        error = error.__cause__ or error.__context__
    return False
