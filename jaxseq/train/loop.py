"""The training loop: resume, step, log one step late, save, evaluate, stop for the right reasons."""

import contextlib
import errno
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxseq.errors import UserError
from jaxseq.train import flops, plan, probe, tokenizers, workdirs
from jaxseq.train import mesh as meshes
from jaxseq.train.checkpoints import Checkpoints
from jaxseq.train.diagnose import diagnose
from jaxseq.train.failures import NonFiniteError, is_disk_full
from jaxseq.train.metrics import MetricsWriter, memory
from jaxseq.train.probe import Probe
from jaxseq.train.run import Run
from jaxseq.train.step import TrainState
from jaxseq.train.stopping import Stopped, terminated

log = logging.getLogger(__name__)


def nothing(told: Any) -> None:
    pass


def train(
    config,
    workdir: str | os.PathLike,
    *,
    progress: Callable[[dict[str, Any]], None] | None = None,
    announce: Callable[[plan.Plan], None] | None = None,
    stop: Callable[[], bool] | None = None,
    devices: Sequence[jax.Device] | None = None,
    debug: bool = False,
) -> dict[str, Any]:
    """Trains `config` in `workdir` up to step config.train.steps, resuming whatever is there, and returns the last
    record.

    Args:
      progress: called with every logged record, to which the loop adds `steps` and `eta_seconds`.
      announce: called before the first step with what the run is about to do.
      stop: asked before every step and every piece of an evaluation; when true (or on SIGTERM or Ctrl-C) the run saves and
        returns early. The record is then that of the step it saved, with `stopped`, what has been done in words, and
        `signal`, the number of the one received, 0 for none.
      devices: all devices by default.
      debug: layers run one after another, unscanned; of every recorded step the norms of each layer's activations and
        gradients are logged and stand in its record ("activation_rms/blocks_0/attention/1"). It runs such a step twice.

    Before the first step there is nothing to save: signals do then what they did before the call.

    Raises UserError for a config that cannot be trained or a workdir of another one or in use, NonFiniteError when the
    numbers go bad (the last good checkpoint stays), OSError with ENOSPC when the disk is full (so does it then).
    """
    try:
        return _train(Run(config, workdir, devices, debug), progress or nothing, announce or nothing, stop or (lambda: False))
    except UserError:
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        # One exception for all that a full disk makes Orbax, TensorBoard and Python raise.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(workdir)) from error


def planned(config, workdir: str | os.PathLike, devices: Sequence[jax.Device] | None = None) -> plan.Plan:
    """What `train` would do, found out without writing into `workdir`. Raises what it would raise before its first step."""
    run = Run(config, workdir, devices)
    run.open()
    run.prepare()
    return run.plan


def _train(run: Run, progress: Callable, announce: Callable, stop: Callable[[], bool]) -> dict[str, Any]:
    last = run.config.train.steps
    with workdirs.claimed(run.workdir), Checkpoints(run.workdir, run.config.train.keep) as checkpoints:
        if checkpoints.reached(last) and (record := run.complete()):
            log.info("%s is at step %d of %d: nothing is left to do", run.workdir, record["step"], last)
            return record
        run.open()
        state = run.start(checkpoints)
        run.prepare()
        run.config = tokenizers.kept(run.config, run.workdir)
        workdirs.write_config(run.workdir, run.config)
        announce(run.plan)
        with contextlib.closing(run.writer(int(state.step))) as writer, terminated() as asked:
            loop = _Loop(run, state, checkpoints, writer, progress, lambda: bool(asked()) or stop())
            record = loop.run()
            return record | {"stopped": loop.told(), "signal": asked()} if loop.halted else record


class _Loop:
    """A run from one step to its last, and what it keeps between two steps."""

    def __init__(self, run: Run, state: TrainState, checkpoints: Checkpoints, writer: MetricsWriter, progress, stop):
        self.own, self.config, self.trainer = run, run.config, run.trainer
        self.state, self.checkpoints, self.writer, self.progress, self.stop = state, checkpoints, writer, progress, stop
        self.first = self.step = int(state.step)
        self.last = self.config.train.steps
        self.peak = flops.machine_peak(self.config.model.dtype, self.trainer.mesh.size)
        self.clock = Clock(self.step)
        self.pending: tuple[int, dict, dict] | None = None
        self.probe = Probe(run.trainer) if run.trainer.debug else None
        self.current: dict[str, Any] = {"step": self.step}
        self.halted = False

    def run(self) -> dict[str, Any]:
        """Steps until done, and returns the last record. Step k is recorded after step k + 1 was handed to the devices:
        they never wait for it. The last weights are saved before they are judged."""
        settings = self.config.train
        if self.first and not self.own.judged(self.first):
            self.judge(self.first)  # an earlier process was stopped before it
        while self.step < self.last and not self.halted:
            if self.agreed(self.step):
                self.halted = True
                break
            batch = meshes.put_batch(next(self.own.batches), self.trainer.mesh, settings.batch)
            norms = self.norms(self.step + 1, batch)
            self.state, values = self.own.compiled(self.state, batch)
            values |= norms
            self.step += 1
            self.flush()
            self.pending = (self.step, values, batch)
            if self.step < self.last and due(self.step, settings.eval_every):
                self.flush(tell=False)  # waits, so that evaluation is not timed as training
                self.judge(self.step)
            if self.step < self.last and not self.halted and due(self.step, settings.checkpoint_every):
                self.flush()
                self.save()
        self.flush(tell=self.step < self.last)
        if self.step > self.first:
            self.save()
            self.checkpoints.wait()
        if self.first < self.step == self.last:
            self.judge(self.step)
        return self.current

    def flush(self, tell: bool = True) -> None:
        """Records the step that is still to be recorded. Raises NonFiniteError when it went wrong.

        tell: also to `progress`; a step that is judged next is told once, with its validation figures.
        """
        if self.pending is None:
            return
        number, values, batch = self.pending
        self.pending = None
        values = jax.device_get(values)
        if not values.pop("ok"):
            self.checkpoints.wait()
            good = self.checkpoints.latest()
            kept = "there is no checkpoint yet" if good is None else f"the checkpoint of step {good} is kept"
            reason = diagnose(self.trainer, self.state, batch)
            raise NonFiniteError(f"not finite at step {number}: {reason}; {kept}; lower train.lr or set train.clip")
        written = self.written(number)
        if written or self.halted:  # where a run happens to be stopped is told, and leaves no trace
            self.current = self.record(number, values)
            if written:
                self.writer.write(self.current)
            if tell:
                self.tell()

    def written(self, number: int) -> bool:
        """Whether this step gets a record."""
        settings = self.config.train
        return number in (1, self.last) or due(number, settings.log_every) or due(number, settings.eval_every)

    def norms(self, number: int, batch: dict[str, jax.Array]) -> dict[str, float]:
        """In debugging the norms of every layer in a step that is recorded, logged a line a layer."""
        if self.probe is None or not self.written(number):
            return {}
        norms = self.probe.norms(self.state, batch)
        for line in probe.lines(norms):
            log.info("step %d, %s", number, line)
        return norms

    def tell(self) -> None:
        if "loss" not in self.current:  # an earlier process's record, lost
            return
        left = self.clock.seconds_a_step * (self.last - self.current["step"])
        self.progress(self.current | {"steps": self.last, "eta_seconds": left})

    def judge(self, step: int) -> None:
        """Adds the validation figures to the record of a step, unless there are no such data or the run is to stop; tells it."""

        def between() -> None:
            if self.agreed():
                raise Stopped

        task = self.own.task
        with self.clock.paused():
            try:
                if task.validates:
                    found = task.evaluate(self.trainer.model, self.state.variables, mesh=self.trainer.mesh, between=between)
                    figures = {f"validation_{name}": found[name] for name in task.figures}
                    self.current = self.writer.add(step, figures) or self.current | figures
            except Stopped:
                self.halted = True
        self.tell()

    def agreed(self, step: int | None = None) -> bool:
        """Whether any process wants to stop. Of several, steps that are not logged are not asked about: it makes them wait."""
        if jax.process_count() == 1:
            return self.stop()
        if step is not None and not (step == 1 or due(step, self.config.train.log_every)):
            return False
        return bool(multihost_utils.process_allgather(np.asarray(self.stop())).any())

    def save(self) -> None:
        with self.clock.paused():
            self.writer.sync()
            self.checkpoints.save(self.state, self.own.batches.state(), self.config)

    def told(self) -> str:
        """Where the run was stopped, and what became of its weights."""
        if self.step == self.last:
            return f"in the evaluation after step {self.step}, the last, which is saved"
        if self.step == self.first:
            return f"before step {self.step + 1}, with nothing new to save"
        return f"after step {self.step}, which is saved"

    def record(self, step: int, values: dict[str, Any]) -> dict[str, Any]:
        """What is written for a step. Rates are over the steps since the last record, without evaluation and saving."""
        values = {name: float(value) for name, value in values.items()}
        seconds = self.clock.lap(step)
        rate = self.own.tokens_per_step / seconds
        record = {"step": step, "loss": values.pop("loss")}
        if self.own.bytes_per_token and "nats" in values:
            record["bits_per_byte"] = values["nats"] / math.log(2) / self.own.bytes_per_token
        return (
            record
            | values
            | {
                "tokens_seen": step * self.own.tokens_per_step,
                "tokens_per_second": rate,
                "flops_per_token": self.own.flops_per_token,
                "flops_utilisation": rate * self.own.flops_per_token / self.peak,
                "hardware_flops_per_token": self.own.hardware_flops_per_token,
                "hardware_flops_utilisation": rate * self.own.hardware_flops_per_token / self.peak,
                **memory(),
            }
        )


def due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


class Clock:
    """Seconds a step, since the last lap, while not paused."""

    def __init__(self, step: int):
        self.step = step
        self.seconds_a_step = 0.0
        self.since = time.perf_counter()

    def lap(self, step: int) -> float:
        now = time.perf_counter()
        if step > self.step:
            self.seconds_a_step = max(now - self.since, 1e-9) / (step - self.step)
        self.step, self.since = step, now
        return self.seconds_a_step

    @contextlib.contextmanager
    def paused(self):
        start = time.perf_counter()
        yield
        self.since += time.perf_counter() - start
