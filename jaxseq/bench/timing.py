"""Timing of calls in turns (A B C A B C …), and ratios of two calls with their spread."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

FASTEST = 0.05  # minimum seconds of one timing: short calls are repeated to reach it
SPREAD = 0.10  # a ratio with a larger spread gives no ranking

Calls = Mapping[Any, Callable[[], Any]]  # by names, or by tuples of names
OnProgress = Callable[[float, str], None]  # (fraction that is done, current activity)


def silent(fraction: float, note: str) -> None:
    pass


def laps(calls: Calls, rounds: int, on_progress: OnProgress = silent, shortest: float = FASTEST) -> dict[Any, list[float]]:
    """Seconds per call in each round. A call must block until its work is done. One warm-up call is not counted."""
    repeats = {name: max(1, math.ceil(shortest / max(seconds(call), 1e-6))) for name, call in calls.items()}
    found: dict[Any, list[float]] = {name: [] for name in calls}
    for lap in range(rounds):
        for name, call in calls.items():
            on_progress(lap / rounds, f"timing {name if isinstance(name, str) else ', '.join(name)}")
            found[name].append(seconds(call, repeats[name]))
    return found


def seconds(call: Callable[[], Any], repeat: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - start) / repeat


def in_turns(calls: Calls, rounds: int, on_progress: OnProgress = silent) -> dict[Any, float]:
    """Median seconds per call of each, see `laps`."""
    return {name: statistics.median(found) for name, found in laps(calls, rounds, on_progress).items()}


class Ratio(NamedTuple):
    """The median over rounds of a / b, and the interquartile range of a / b relative to the median."""

    value: float
    spread: float

    @property
    def ranks(self) -> bool:
        """Whether the spread is small enough to call one of the two faster."""
        return self.spread <= SPREAD


def ratio(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """The ratio of two calls that were timed in the same rounds."""
    low, middle, high = np.percentile(np.asarray(a) / np.asarray(b), [25, 50, 75])
    return Ratio(float(middle), float((high - low) / middle))


def crossover(below: Mapping[int, float], above: Mapping[int, float], margin: float = 1.0) -> int | None:
    """The first shared length from which `below` · margin < `above` everywhere; None if this fails at the longest length."""
    first = None
    for x in sorted(below.keys() & above.keys(), reverse=True):
        if not below[x] * margin < above[x]:
            break
        first = x
    return first
