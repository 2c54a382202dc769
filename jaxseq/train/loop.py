"""The training loop: resume, step, record, save, evaluate, rewind after a bad step, stop."""

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from jaxseq.errors import UserError, is_disk_full
from jaxseq.train import locks, plan, probe, tokenizers, workdirs
from jaxseq.train import mesh as meshes
from jaxseq.train.checkpoints import Checkpoints, copied_at_once
from jaxseq.train.diagnose import diagnose
from jaxseq.train.failures import BadStepError, NonFiniteError, SpikeError
from jaxseq.train.guard import Verdict
from jaxseq.train.probe import Probe
from jaxseq.train.profiles import FOLDER, Profiler
from jaxseq.train.records import Records, due
from jaxseq.train.run import Run
from jaxseq.train.step import TrainState
from jaxseq.train.stopping import Asked, Stopped, terminated

log = logging.getLogger(__name__)


def nothing(record: Any) -> None:
    pass


def train(
    config: ConfigDict,
    workdir: str | os.PathLike,
    *,
    progress: Callable[[dict[str, Any]], None] | None = None,
    announce: Callable[[plan.RunPlan], None] | None = None,
    stop: Callable[[], bool] | None = None,
    devices: Sequence[meshes.Device] | None = None,
    debug: bool = False,
    profile: range | None = None,
) -> dict[str, Any]:
    """Trains `config` in `workdir` to step config.train.steps, resuming from its latest checkpoint; returns the last record.

    Args:
      progress: called with every logged record, to which the loop adds `steps`, `eta_seconds` and the plan's `lossy`.
      announce: called with the run's plan before the first step.
      stop: called before every step and during evaluation; if it returns True (or on SIGTERM or Ctrl-C), the run saves and
        returns early. The record is then that of the saved step, with two more fields: `stopped`, a sentence that says where,
        and `signal`, the number of the received signal or 0.
      devices: all devices by default.
      debug: unroll the scan over layers. At every recorded step, log and record the norms of each layer's activations and
        gradients ("activation_rms/blocks_0/attention/1"). Such a step is computed twice.
      profile: the steps for which jax.profiler writes a trace to workdir/profile.

    Signals are handled from the first step on; before it there is nothing to save.

    Raises UserError for a config that cannot be trained, and for a workdir of another config or in use; BadStepError for a bad
    step that the config does not skip or rewind; OSError with ENOSPC if the disk is full. The last good checkpoint is kept.
    """
    try:
        run = Run(config, workdir, devices, debug)
        return _train(run, progress or nothing, announce or nothing, stop or (lambda: False), profile)
    except UserError:
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        # Orbax, TensorBoard and Python raise different exceptions for a full disk; callers get one.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(workdir)) from error


def planned(
    config: ConfigDict, workdir: str | os.PathLike, devices: Sequence[meshes.Device] | None = None
) -> plan.RunPlan:
    """The plan of `train`, without writing to `workdir`. Raises what `train` would raise before its first step."""
    run = Run(config, workdir, devices)
    run.open()
    run.prepare()
    return run.plan


def _train(run: Run, progress: Callable, announce: Callable, stop: Callable[[], bool], profile: range | None) -> dict[str, Any]:
    last = run.config.train.steps
    if profile and profile[-1] > last:
        raise UserError(f"--profile={profile[0]}-{profile[-1]} ends after the last step, train.steps={last}; lower it")
    at_once = copied_at_once(run.trainer.abstract)
    with locks.claimed(run.workdir) as held, Checkpoints(run.workdir, run.config.train.keep, at_once) as checkpoints:
        if checkpoints.reached(last) and (record := run.complete()):
            log.info("%s is at step %d of %d: nothing to do", run.workdir, record["step"], last)
            return record
        run.open()
        state = run.start(checkpoints)
        run.prepare()
        logger = run.logger()  # refused, if at all, before anything is written
        run.config = tokenizers.kept(run.config, run.workdir)
        workdirs.write_config(run.workdir, run.config)
        announce(run.plan)
        with contextlib.closing(run.writer(int(state.step), logger)) as writer, terminated() as asked:
            run.goodput.turn("training")
            records = Records(run, int(state.step), writer, progress, held)
            with Profiler(profile, run.workdir / FOLDER) as profiler:
                loop = _Loop(run, state, checkpoints, records, profiler, stop, asked)
                record = loop.run()
            return record | {"stopped": loop.stopped(), "signal": asked()} if loop.halted else record


class _Rewind(Exception):
    """The run must go back to a checkpoint and continue with the data after a bad step; the message says why."""

    def __init__(self, step: int, reason: str, behind: dict[str, Any]):
        super().__init__(reason)
        self.step, self.behind = step, behind


class _Loop:
    """A run from a step to its last step, with the state that it keeps between steps."""

    def __init__(
        self, run: Run, state: TrainState, checkpoints: Checkpoints, records: Records, profiler: Profiler, stop: Callable,
        asked: Asked,
    ):  # fmt: skip
        self.own, self.config, self.trainer, self.guard, self.goodput = run, run.config, run.trainer, run.guard, run.goodput
        self.state, self.checkpoints, self.records, self.profiler = state, checkpoints, records, profiler
        self.stop, self.asked = stop, asked
        self.first = self.step = int(state.step)
        self.last = self.config.train.steps
        self.safe = self.goodput.seconds["training"]  # seconds up to the last checkpoint
        self.pending: tuple[int, dict, dict, dict] | None = None  # step, values, batch, data state after it
        self.probe = Probe(run.trainer) if run.trainer.debug else None
        self.halted = False

    def run(self) -> dict[str, Any]:
        """Runs all steps, rewinding where necessary, and returns the last record."""
        while True:
            try:
                return self.steps()
            except _Rewind as bad:
                self.rewind(bad)

    def steps(self) -> dict[str, Any]:
        """Runs to the last step and returns its record. Step k is recorded after step k + 1 has been dispatched, so that devices
        need not wait for the host. The last weights are saved before they are evaluated."""
        settings = self.config.train
        if self.first and not self.own.judged(self.first):
            self.judge(self.first, saved=True)  # an earlier process stopped before evaluating it
        while self.step < self.last and not self.halted:
            if self.agreed(self.step):
                self.halted = True
                break
            with self.goodput.spent("data"):
                rows, behind = next(self.own.batches), self.own.batches.state()
            batch = meshes.put_batch(rows, self.trainer.mesh, settings.batch)
            norms = self.norms(self.step + 1, batch)
            self.profiler.before(self.step + 1, self.state)
            self.state, values = self.own.compiled(self.state, batch)
            values |= norms
            self.step += 1
            self.flush()
            self.pending = (self.step, values, batch, behind)
            if self.step < self.last and due(self.step, settings.eval_every):
                self.flush(report=False)  # waits for the step, so that its time does not count as evaluation
                self.judge(self.step)
            if self.step < self.last and not self.halted and due(self.step, settings.checkpoint_every):
                self.flush()
                self.save()
        self.flush(report=self.step < self.last)
        self.profiler.stop()
        if self.step > self.first:
            self.save()
            with self.goodput.spent("checkpoint"):
                self.checkpoints.wait()
        if self.first < self.step == self.last:
            self.judge(self.step, saved=True)
        if self.step < self.last:
            return self.records.current | self.goodput.figures()
        self.records.add(self.step, self.goodput.figures())
        return self.records.current

    def flush(self, report: bool = True) -> None:
        """Records the pending step, if any. Raises BadStepError or _Rewind if it was bad.

        report: also pass the record to `progress`; False if an evaluation follows, which passes it on with its figures.
        """
        if self.pending is None:
            return
        number, values, batch, behind = self.pending
        self.pending = None
        values = jax.device_get(values)
        good = bool(values.pop("ok"))
        values = {name: float(value) for name, value in values.items()}
        verdict = self.guard.judge(good, values["loss"])
        if verdict is Verdict.END:
            raise self.failure(number, values, batch, good)
        if verdict is Verdict.REWIND:
            raise _Rewind(number, self.guard.reason(values), behind)
        if verdict is Verdict.SKIPPED:
            count = f"{self.guard.skipped} of train.skip={self.config.train.skip}"
            log.warning("step %d is skipped: %s (%s)", number, self.guard.reason(values), count)
        if self.records.wanted(number):
            self.records.write(number, values)
        elif self.halted:  # reported but not written
            self.records.make(number, values)
        else:
            return
        if report:
            self.records.report()

    def norms(self, number: int, batch: dict[str, jax.Array]) -> dict[str, float]:
        """In debug mode, the norms of every layer at a recorded step; logged with one line per layer."""
        if self.probe is None or not self.records.wanted(number):
            return {}
        norms = self.probe.norms(self.state, batch)
        for line in probe.lines(norms):
            log.info("step %d, %s", number, line)
        return norms

    def failure(self, number: int, values: dict[str, float], batch: dict[str, jax.Array], good: bool) -> BadStepError:
        """The error that ends the run at a bad step."""
        self.checkpoints.wait()
        kept = self.checkpoints.latest()
        kept = "there is no checkpoint yet" if kept is None else f"the checkpoint of step {kept} is kept"
        reason = self.guard.reason(values)
        if good or "not finite" not in reason:
            return SpikeError(f"step {number}: {reason}; {kept}; lower train.lr, or set train.rewind or train.skip")
        if not self.config.train.skip:  # with train.skip a later step has already changed the state
            reason = diagnose(self.trainer, self.state, batch)
        return NonFiniteError(f"not finite at step {number}: {reason}; {kept}; lower train.lr or set train.clip")

    def rewind(self, bad: _Rewind) -> None:
        """Goes back to the last checkpoint, or to the start, and continues with the data after the bad step."""
        self.records.held()
        self.checkpoints.wait()
        self.pending = None
        del self.state  # frees its memory
        self.state = self.own.start(self.checkpoints)
        self.own.batches.restore(bad.behind)
        self.step = int(self.state.step)
        self.first = min(self.first, self.step)
        self.goodput.lose(self.goodput.seconds["training"] - self.safe)
        self.records.rewind(self.step)
        count = f"{self.guard.rewound} of train.rewind={self.config.train.rewind}"
        log.warning("step %d: %s; back to step %d, continuing with later data (%s)", bad.step, bad, self.step, count)

    def judge(self, step: int, saved: bool = False) -> None:
        """Evaluates a step, adds the figures to its record and passes that to `progress`. No figures without validation data, or
        if the run is stopped meanwhile.

        saved: the state is on disk, so a stop need not wait, even while the evaluation is being compiled.
        """

        def between() -> None:
            if self.agreed():
                raise Stopped

        task = self.own.task
        alone = saved and jax.process_count() == 1  # others would wait for a process that ends
        with self.goodput.spent("evaluation"), self.asked.all_saved() if alone else contextlib.nullcontext():
            try:
                if task.validates:
                    found = task.evaluate(self.trainer.model, self.state.variables, mesh=self.trainer.mesh, between=between)
                    self.records.add(step, {f"validation_{name}": found[name] for name in task.figures})
            except Stopped:
                self.halted = True
        self.records.report()

    def agreed(self, step: int | None = None) -> bool:
        """Whether any process wants to stop. Several processes agree only at logged steps, because agreeing makes them wait."""
        stop = bool(self.asked()) or self.stop()
        if jax.process_count() == 1:
            return stop
        if step is not None and not (step == 1 or due(step, self.config.train.log_every)):
            return False
        return bool(multihost_utils.process_allgather(np.asarray(stop)).any())

    def save(self) -> None:
        with self.goodput.spent("checkpoint"):
            self.records.sync()
            data = {"batches": self.own.batches.state(), "guard": self.guard.state()}
            self.checkpoints.save(self.state, data, self.config)
        self.safe = self.goodput.seconds["training"]

    def stopped(self) -> str:
        """Where the run was stopped, and whether its weights are saved."""
        if self.step == self.last:
            return f"in the evaluation after step {self.step}, the last, which is saved"
        if self.step == self.first:
            return f"before step {self.step + 1}, with nothing new to save"
        return f"after step {self.step}, which is saved"
