"""How a run can end badly through no fault of the user's input."""

import errno


class BadStepError(ArithmeticError):
    """The numbers of a step went bad, and the run may not go on past it; the message is one line that names what and where."""


class NonFiniteError(BadStepError):
    """A loss, gradient or parameter is no longer a finite number."""


class SpikeError(BadStepError):
    """A loss or gradient is finite, and beyond what the config takes."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether `error`, or what caused it, says that the disk is full (tensorstore, inside Orbax, says it in text)."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(text in str(error) for text in ("No space left on device", "Disk quota exceeded")):
            return True
        error = error.__cause__ or error.__context__
    return False
