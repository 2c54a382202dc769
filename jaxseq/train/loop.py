"""The training loop: resume, step, log one step late, evaluate, save, stop for the right reasons."""

import contextlib
import errno
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxseq import registry
from jaxseq.errors import UserError
from jaxseq.train import flops
from jaxseq.train import mesh as meshes
from jaxseq.train.checkpoints import Checkpoints, restore_variables, write_config
from jaxseq.train.diagnose import diagnose
from jaxseq.train.failures import NonFiniteError, is_disk_full
from jaxseq.train.metrics import MetricsWriter, memory, read
from jaxseq.train.step import Trainer, TrainState, prepare

log = logging.getLogger(__name__)


def train(
    config,
    workdir: str | os.PathLike,
    *,
    progress: Callable[[dict[str, Any]], None] | None = None,
    stop: Callable[[], bool] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
    """Trains `config` in `workdir` up to step config.train.steps, resuming whatever is there, and returns the last
    record.

    Args:
      progress: called with every logged record, to which the loop adds `steps` and `eta_seconds`.
      stop: asked before every step; when true (or on SIGTERM) the run saves and returns early.
      devices: all devices by default.

    Raises UserError for a config that cannot be trained or a workdir of another one, NonFiniteError when the numbers
    go bad (the last good checkpoint stays), OSError with ENOSPC when the disk is full (so does it then).
    """
    try:
        with terminated() as asked:
            return _Run(config, Path(workdir), devices).run(
                progress or (lambda record: None), lambda: asked() or bool(stop and stop())
            )
    except UserError:
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        # One exception for all that a full disk makes Orbax, TensorBoard and Python raise.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(workdir)) from error


@contextlib.contextmanager
def terminated():
    """Yields a function that says whether SIGTERM or Ctrl-C has arrived; only the main thread can ask for signals."""
    received = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield received.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def receive(number: int, frame) -> None:
        received.set()
        signal.signal(number, before[number])  # a second one ends the process at once

    for number in before:
        signal.signal(number, receive)
    try:
        yield received.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Run:
    """One process's share of a run: what the loop keeps between its steps."""

    def __init__(self, config, workdir: Path, devices: Sequence[jax.Device] | None):
        objective = registry.load("train.objectives", config.train.objective)
        self.task = objective.task(config)
        self.config = config = self.task.config
        self.workdir = workdir
        self.trainer: Trainer = prepare(config, devices)
        make_workdir(workdir)
        write_config(workdir, config)
        self.batches = self.task.batches(*meshes.process_rows(self.trainer.mesh, config.train.batch))
        self.bytes_per_token = self.task.bytes_per_token
        self.tokens_per_step = objective.tokens(config)

    def start(self, checkpoints: Checkpoints) -> TrainState:
        """The state to go on from: the latest checkpoint, else the weights of train.init, else random ones."""
        step = checkpoints.latest()
        if step is not None:
            state, batches = checkpoints.restore(self.trainer, step)
            self.batches.restore(batches)
            log.info("resuming %s at step %d", self.workdir, step)
            return state
        source = self.config.train.init
        if not source:
            return self.trainer.init()
        found = restore_variables(source, self.trainer.abstract.variables, heads=self.trainer.model.optional)
        if found["params"].keys() != self.trainer.abstract.params.keys():  # a head that the weights do not have
            found["params"] = self.trainer.fresh()["params"] | found["params"]
        return self.trainer.init(found)

    def run(self, progress: Callable[[dict], None], stop: Callable[[], bool]) -> dict[str, Any]:
        with Checkpoints(self.workdir, self.config.train.keep) as checkpoints:
            state = self.start(checkpoints)
            if int(state.step) >= self.config.train.steps:
                return self.finished(state)
            with contextlib.closing(MetricsWriter(self.workdir, int(state.step))) as writer:
                return self.loop(state, checkpoints, writer, progress, stop)

    def loop(self, state: TrainState, checkpoints: Checkpoints, writer: MetricsWriter, progress, stop) -> dict[str, Any]:
        """Steps until done. Step k is recorded after step k + 1 was handed to the devices: they never wait for it."""
        first = step = int(state.step)
        last = self.config.train.steps
        self.flops_per_token = self.trainer.flops_per_token()
        self.peak = flops.machine_peak(self.config.model.dtype, self.trainer.mesh.size)
        compiled = self.trainer.compile()
        clock = Clock(step)
        pending: tuple[int, dict, dict] | None = None
        record: dict[str, Any] = {"step": step}

        def flush(extra: dict[str, Any] | None = None) -> None:
            nonlocal pending, record
            if pending is None:
                return
            number, metrics, batch = pending
            pending = None
            values = jax.device_get(metrics)
            if not values.pop("ok"):
                checkpoints.wait()
                good = checkpoints.latest()
                kept = "there is no checkpoint yet" if good is None else f"the checkpoint of step {good} is kept"
                reason = diagnose(self.trainer, state, batch)
                raise NonFiniteError(f"not finite at step {number}: {reason}; {kept}; lower train.lr or set train.clip")
            if extra is not None or self.logged(number):
                record = self.record(number, values, clock) | (extra or {})
                writer.write(record)
                progress(record | {"steps": last, "eta_seconds": clock.seconds_a_step * (last - number)})

        while step < last and not self.agreed(stop(), step):
            batch = meshes.put_batch(next(self.batches), self.trainer.mesh, self.config.train.batch)
            state, metrics = compiled(state, batch)
            step += 1
            flush()
            pending = (step, metrics, batch)
            if step == last or self.due(step, self.config.train.eval_every):
                good = bool(metrics["ok"])  # waits, so that evaluation is not timed as training
                with clock.paused():
                    validation = self.evaluate(state) if good else {}
                flush(validation)
            if step < last and self.due(step, self.config.train.checkpoint_every):
                flush()
                with clock.paused():
                    self.save(state, checkpoints, writer)
        flush()
        if step > first:
            self.save(state, checkpoints, writer)
            checkpoints.wait()
        return record

    def finished(self, state: TrainState) -> dict[str, Any]:
        """The last record of a run that has nothing left to do, with the validation figures of its weights."""
        records = [record for record in read(self.workdir) if record["step"] == int(state.step)]
        return {"step": int(state.step)} | (records[-1] if records else {}) | self.evaluate(state)

    def logged(self, step: int) -> bool:
        return step in (1, self.config.train.steps) or self.due(step, self.config.train.log_every)

    def agreed(self, stop: bool, step: int) -> bool:
        """Whether any process wants to stop. Several processes ask each other at logged steps alone: it makes them wait."""
        if jax.process_count() == 1:
            return stop
        return self.logged(step) and bool(multihost_utils.process_allgather(np.asarray(stop)).any())

    @staticmethod
    def due(step: int, every: int) -> bool:
        return every > 0 and step % every == 0

    def save(self, state: TrainState, checkpoints: Checkpoints, writer: MetricsWriter) -> None:
        writer.sync()
        checkpoints.save(state, self.batches.state(), self.config)

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """The validation figures of `state`; none where there is no validation split."""
        if not self.task.validates:
            return {}
        result = self.task.evaluate(self.trainer.model, state.variables, mesh=self.trainer.mesh)
        return {f"validation_{name}": result[name] for name in self.task.figures}

    def record(self, step: int, values: dict[str, Any], clock: "Clock") -> dict[str, Any]:
        """What is written for a step. Rates are over the steps since the last record, without evaluation and saving."""
        values = {name: float(value) for name, value in values.items()}
        seconds = clock.lap(step)
        rate = self.tokens_per_step / seconds
        record = {"step": step, "loss": values.pop("loss")}
        if self.bytes_per_token and "nats" in values:
            record["bits_per_byte"] = values["nats"] / math.log(2) / self.bytes_per_token
        return (
            record
            | values
            | {
                "tokens_seen": step * self.tokens_per_step,
                "tokens_per_second": rate,
                "flops_per_token": self.flops_per_token,
                "flops_utilisation": rate * self.flops_per_token / self.peak,
                **memory(),
            }
        )


def make_workdir(workdir: Path) -> None:
    """Raises UserError when the folder cannot be made or written."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"--workdir={workdir} is a file, or lies below one; name a folder") from None
    except PermissionError:
        raise UserError(f"--workdir={workdir} cannot be made here; choose a folder that you may write") from None
    if not os.access(workdir, os.W_OK):
        raise UserError(f"--workdir={workdir} cannot be written; choose a folder that you may write")


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
