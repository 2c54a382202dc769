"""How a run spends its time. Goodput is the share of the wall time that was spent on training.

Seconds count from the call of `train`, summed over the successive processes of a run according to its records; the time between
two processes does not count. Training that is repeated after a kill or a rewind is `lost`.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# start: checks and state. data: reading, tokenising, waiting for a batch. checkpoint: reading and writing.
KINDS = ("training", "start", "compile", "data", "checkpoint", "evaluation", "lost")
BETWEEN_RECORDS = ("training", "data", "lost")  # the time that counts for tokens per second


class Goodput:
    """Seconds by kind. Exactly one kind is active at any moment, at first `start`."""

    def __init__(self):
        self.seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self.kind, self.since = "start", time.perf_counter()

    def turn(self, kind: str) -> None:
        """Time counts as `kind` from now on."""
        now = time.perf_counter()
        self.seconds[self.kind] += now - self.since
        self.kind, self.since = kind, now

    @contextlib.contextmanager
    def spent(self, kind: str) -> Iterator[None]:
        """Time inside this context counts as `kind`."""
        before = self.kind
        self.turn(kind)
        try:
            yield
        finally:
            self.turn(before)

    def lose(self, seconds: float) -> None:
        """Counts this many seconds of training as lost, because they must be repeated."""
        self.seconds["training"] -= seconds
        self.seconds["lost"] += seconds

    def resume(self, last: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
        """Adds what earlier processes recorded. last: their last record; kept: the record of the step to resume from."""
        for kind in KINDS:
            self.seconds[kind] += last.get(f"time_{kind}", 0.0)
        self.lose(max(0.0, last.get("time_training", 0.0) - kept.get("time_training", 0.0)))

    def working(self) -> float:
        self.turn(self.kind)
        return sum(self.seconds[kind] for kind in BETWEEN_RECORDS)

    def figures(self) -> dict[str, float]:
        """`goodput`, and the seconds of each kind as `time_KIND`."""
        self.turn(self.kind)
        total = sum(self.seconds.values())
        share = self.seconds["training"] / total if total else 0.0
        return {"goodput": share} | {f"time_{kind}": seconds for kind, seconds in self.seconds.items()}


class Pace:
    """Seconds per step since the last lap. working: seconds worked so far."""

    def __init__(self, step: int, working: Callable[[], float]):
        self.step, self.working, self.since = step, working, working()
        self.seconds_a_step = 0.0

    def lap(self, step: int) -> float:
        now = self.working()
        if step > self.step:
            self.seconds_a_step = max(now - self.since, 1e-9) / (step - self.step)
        self.step, self.since = step, now
        return self.seconds_a_step


def describe(figures: Mapping[str, Any]) -> str:
    """`figures` in one line, the largest kinds first; kinds below half a percent are left out."""
    seconds = {kind: figures.get(f"time_{kind}", 0.0) for kind in KINDS}
    total = sum(seconds.values()) or 1.0
    others = sorted((kind for kind in KINDS if kind != "training"), key=lambda kind: -seconds[kind])
    rest = ", ".join(f"{kind} {seconds[kind] / total:.0%}" for kind in others if seconds[kind] >= 0.005 * total)
    return f"time: {total:.0f} s, {seconds['training'] / total:.0%} of it training" + (f"; {rest}" if rest else "")
