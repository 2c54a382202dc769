"""What an op's `example` returns: inputs that tests, benchmark and report share."""

from typing import Any, NamedTuple


class Example(NamedTuple):
    """Arguments of `form(*xs, state=state, pos=pos, **weights, **options)`."""

    xs: tuple  # arrays [B, T, ...]
    weights: dict[str, Any]  # arrays without a time axis
    options: dict[str, Any]  # static Python values
    state: Any  # what a real prefix leaves behind, so large that at least 30 % of the output comes from it
