"""Errors that end a run and are not caused by bad input."""


class BadStepError(ArithmeticError):
    """A step went bad and the run may not skip it; the message is one line that says what went bad and where."""


class NonFiniteError(BadStepError):
    """A loss, gradient or parameter is no longer a finite number."""


class SpikeError(BadStepError):
    """A loss or gradient is finite but above the limit in the config."""
