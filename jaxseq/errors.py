"""The error for bad input; and whether an exception was caused by Ctrl-C or by a full disk."""

import errno


class UserError(ValueError):
    """Bad input: the message says what is wrong and how to mend it. The command line prints it and exits with status 2."""


def interrupted(error: BaseException | None) -> bool:
    """Whether an error is Ctrl-C's KeyboardInterrupt, or was raised while one was handled.

    A signal arrives anywhere, also inside a library that turns it into an error of its own: jax into a ValueError.
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def is_disk_full(error: BaseException | None) -> bool:
    """Whether `error` or its cause means that the disk is full (tensorstore, used by Orbax, says so only in the text)."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(text in str(error) for text in ("No space left on device", "Disk quota exceeded")):
            return True
        error = error.__cause__ or error.__context__
    return False
