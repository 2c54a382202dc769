"""Detects bad steps and decides whether a run may continue past them.

A step is bad if its loss, gradient or update is not finite, or if its gradient's norm is above train.skip_norm. The step itself
reports this (see `jaxseq.train.step`) and does not change the weights. At most train.skip bad steps are skipped.

A loss above train.spike times the median of the recent losses is a spike. It is detected one step late, after the weights have
changed. After a spike, or a bad step that may not be skipped, the run may go back to its last checkpoint, at most train.rewind
times. It continues from there with the data after the bad steps, as in PaLM (Chowdhery et al. 2022, arXiv:2204.02311, section
5.1).
"""

import collections
import enum
import math
import statistics
from collections.abc import Mapping
from typing import Any

WINDOW = 64  # losses whose median a spike is compared with
FEWEST = 16  # minimum number of losses to detect a spike


class Verdict(enum.Enum):
    GOOD = "good"
    SKIPPED = "skipped"
    REWIND = "go back to the last checkpoint"
    END = "the run ends"


class Guard:
    """Decides about a run's steps, in order, and counts the skipped ones. Its state is saved with the checkpoints, so that a
    resumed run makes the same decisions."""

    def __init__(self, train):
        self.train = train
        self.losses: collections.deque[float] = collections.deque(maxlen=WINDOW)
        self.skipped = self.rewound = 0

    def state(self) -> dict[str, Any]:
        """The state as JSON data."""
        return {"losses": list(self.losses), "skipped": self.skipped, "rewound": self.rewound}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Restores `state` from a checkpoint; None: before the first step, or from an earlier version. Keeps the rewind count."""
        state = state or {"losses": [], "skipped": 0, "rewound": 0}
        self.losses = collections.deque(state["losses"], maxlen=WINDOW)
        self.skipped, self.rewound = state["skipped"], max(self.rewound, state["rewound"])

    def figures(self) -> dict[str, int]:
        """The counts for the records; empty as long as no step was bad."""
        counts = {"skipped": self.skipped, "rewound": self.rewound}
        return {name: count for name, count in counts.items() if count}

    def judge(self, good: bool, loss: float) -> Verdict:
        """The verdict on a step. good: the step's own report. Counts skipped steps and rewinds."""
        if good and not self.spikes(loss):
            if self.train.spike:
                self.losses.append(loss)
            return Verdict.GOOD
        if not good and self.skipped < self.train.skip:
            self.skipped += 1
            return Verdict.SKIPPED
        if self.rewound < self.train.rewind:
            self.rewound += 1
            return Verdict.REWIND
        return Verdict.END

    def spikes(self, loss: float) -> bool:
        enough = self.train.spike > 0 and len(self.losses) >= FEWEST
        return enough and loss > self.train.spike * statistics.median(self.losses)

    def reason(self, values: Mapping[str, float]) -> str:
        """Why a step with these values is bad."""
        loss, norm = values["loss"], values["grad_norm"]
        numbers = (loss, norm, values["update_norm"], values["learning_rate"])
        if not all(map(math.isfinite, numbers)):
            return f"not finite (the loss is {loss:.4g}, the gradient's norm {norm:.4g})"
        if self.spikes(loss):
            return f"the loss of {loss:.4g} is a spike, {loss / statistics.median(self.losses):.3g} times the median before it"
        return f"the gradient's norm of {norm:.4g} is above train.skip_norm={self.train.skip_norm:g}"
