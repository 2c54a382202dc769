"""The records of a run: what a record contains, which steps have one, and where records go."""

import math
from collections.abc import Callable
from typing import Any

from jaxseq.train import flops
from jaxseq.train.goodput import Pace
from jaxseq.train.metrics import MetricsWriter, memory
from jaxseq.train.run import Run


def due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


class Records:
    """Makes the records of one process of a run. `writer` stores them, `progress` gets them with `steps`, `eta_seconds` and
    the plan's `lossy`.

    held: called before each write; it raises UserError if the workdir belongs to another run now. current: the last record.
    """

    def __init__(
        self, run: Run, step: int, writer: MetricsWriter, progress: Callable[[dict[str, Any]], None], held: Callable[[], None]
    ):
        self.run, self.writer, self.progress, self.held = run, writer, progress, held
        self.settings = run.config.train
        self.peak = flops.machine_peak(run.config.model.dtype, run.trainer.mesh.size)
        self.current: dict[str, Any] = {}
        self.begin(step)

    def begin(self, step: int) -> None:
        """The next record is of a step after `step`."""
        self.pace = Pace(step, self.run.goodput.working)
        self.current = {"step": step}

    def rewind(self, step: int) -> None:
        """Removes the records after `step`."""
        self.writer.rewind(step)
        self.begin(step)

    def wanted(self, step: int) -> bool:
        """Whether this step gets a record."""
        settings = self.settings
        return step in (1, settings.steps) or due(step, settings.log_every) or due(step, settings.eval_every)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Records a step."""
        self.make(step, values)
        self.held()
        self.writer.write(self.current)

    def make(self, step: int, values: dict[str, float]) -> None:
        """Makes the record of a step, without values that are not finite. Rates are over the steps since the last record, not
        counting evaluation and saving."""
        run = self.run
        rate = run.tokens_per_step / self.pace.lap(step)
        record = {"step": step, "loss": values.pop("loss")}
        if run.bytes_per_token and "nats" in values:
            record["bits_per_byte"] = values["nats"] / math.log(2) / run.bytes_per_token
        record |= values | {
            "tokens_seen": step * run.tokens_per_step,
            "tokens_per_second": rate,
            "flops_per_token": run.flops_per_token,
            "flops_utilisation": rate * run.flops_per_token / self.peak,
            "hardware_flops_per_token": run.hardware_flops_per_token,
            "hardware_flops_utilisation": rate * run.hardware_flops_per_token / self.peak,
            **memory(),
            **run.guard.figures(),
            **run.goodput.figures(),
        }
        self.current = {name: value for name, value in record.items() if math.isfinite(value)}

    def add(self, step: int, figures: dict[str, Any]) -> None:
        """Adds figures to the record of the last step."""
        self.held()
        self.current = self.writer.add(step, figures) or self.current | figures

    def report(self) -> None:
        """Passes the last record to `progress`."""
        if "loss" not in self.current:  # the record was lost with an earlier process
            return
        left = self.pace.seconds_a_step * (self.settings.steps - self.current["step"])
        self.progress(self.current | {"steps": self.settings.steps, "eta_seconds": left, "lossy": self.run.plan.lossy})

    def sync(self) -> None:
        """Syncs the records to disk, before a checkpoint is saved."""
        self.held()
        self.writer.sync()
