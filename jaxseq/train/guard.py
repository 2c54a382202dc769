"""Steps that went bad: which they are, and whether a run may go on past them.

A step is bad when its loss, gradient or update is not finite, or its gradient is longer than train.skip_norm: the step itself
tells (see `jaxseq.train.step`) and leaves the weights as they were. It may be passed over, train.skip times in all.

A loss above train.spike times the median of the last ones is a spike. It is told one step late, when the weights have
changed. A spike, or a bad step that may not be passed over, may take the run back to its last checkpoint, train.rewind times
in all: it goes on from there with the data that follow the bad ones, as PaLM's did (Chowdhery et al. 2022, arXiv:2204.02311,
section 5.1).
"""

import collections
import enum
import math
import statistics
from collections.abc import Mapping
from typing import Any

WINDOW = 64  # losses that a spike is told from
FEWEST = 16  # of them


class Verdict(enum.Enum):
    GOOD = "good"
    SKIPPED = "passed over"
    REWIND = "go back to the last checkpoint"
    END = "the run cannot go on"


class Guard:
    """Judges a run's steps, in order, and counts what it passed over. What it knows travels with the checkpoints, so that
    a run which was killed comes to the same verdicts."""

    def __init__(self, train):
        self.train = train
        self.losses: collections.deque[float] = collections.deque(maxlen=WINDOW)
        self.skipped = self.rewound = 0

    def state(self) -> dict[str, Any]:
        """JSON-able."""
        return {"losses": list(self.losses), "skipped": self.skipped, "rewound": self.rewound}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Goes back to `state`, of a checkpoint; None: of no step, or of an earlier version. Rewinds stay counted."""
        state = state or {"losses": [], "skipped": 0, "rewound": 0}
        self.losses = collections.deque(state["losses"], maxlen=WINDOW)
        self.skipped, self.rewound = state["skipped"], max(self.rewound, state["rewound"])

    def figures(self) -> dict[str, int]:
        """What is recorded of it: nothing as long as nothing went bad."""
        counts = {"skipped": self.skipped, "rewound": self.rewound}
        return {name: count for name, count in counts.items() if count}

    def judge(self, good: bool, loss: float) -> Verdict:
        """good: what the step said of itself. Counts a step that is passed over, and a rewind."""
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
        """Why a step with these values is not good."""
        loss, norm = values["loss"], values["grad_norm"]
        numbers = (loss, norm, values["update_norm"], values["learning_rate"])
        if not all(map(math.isfinite, numbers)):
            return f"not finite (the loss is {loss:.4g}, the gradient's norm {norm:.4g})"
        if self.spikes(loss):
            return f"the loss of {loss:.4g} is a spike, {loss / statistics.median(self.losses):.3g} times the median before it"
        return f"the gradient's norm of {norm:.4g} is above train.skip_norm={self.train.skip_norm:g}"
