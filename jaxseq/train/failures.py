"""How a run can end badly through no fault of the user's input."""

import errno


class NonFiniteError(ArithmeticError):
    """A loss, gradient or parameter is no longer a finite number; the message is one line that names it and the step."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether `error`, or what caused it, says that the disk is full (tensorstore, inside Orbax, says it in text)."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(text in str(error) for text in ("No space left on device", "Disk quota exceeded")):
            return True
        error = error.__cause__ or error.__context__
    return False
