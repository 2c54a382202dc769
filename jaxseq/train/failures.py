"""How a run can end badly through no fault of the user's input: one line for people, exit status 1."""

import errno


class TrainingError(RuntimeError):
    """The run cannot go on; the message is one line."""


class NonFiniteError(TrainingError):
    """A loss, gradient or parameter is no longer a finite number."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether `error`, or what caused it, says that the disk is full (tensorstore, inside Orbax, says it in text)."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(text in str(error) for text in ("No space left on device", "Disk quota exceeded")):
            return True
        error = error.__cause__ or error.__context__
    return False
