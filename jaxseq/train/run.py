"""A run before its first step: all checks that need no step, and the state to start from."""

import logging
import os
from collections.abc import Sequence
from typing import Any

import jax

from jaxseq import paths, registry
from jaxseq.config import to_dict
from jaxseq.errors import UserError
from jaxseq.train import depths, fitting, loggers, metrics, optimizer, plan, structure, tokenizers, workdirs
from jaxseq.train import mesh as meshes
from jaxseq.train.checkpoints import Checkpoints, save_frozen, saved, steps
from jaxseq.train.goodput import Goodput
from jaxseq.train.guard import Guard
from jaxseq.train.step import Trainer, TrainState, prepare
from jaxseq.train.weights import initial

log = logging.getLogger(__name__)


class Run:
    """What one process knows about a run before the first step: config, data, trainer, plan."""

    def __init__(self, config, workdir: str | os.PathLike, devices: Sequence[meshes.Device] | None, debug: bool = False):
        self.goodput = Goodput()
        workdirs.check_path(workdir)
        loggers.check(config.train.logger)
        objective = registry.load("train.objectives", config.train.objective)
        self.task = objective.task(tokenizers.settled(config, workdir))
        self.config = config = self.task.config
        self.workdir = paths.of(workdir)
        self.trainer: Trainer = prepare(config, devices, debug)
        self.task.check(self.trainer.model)
        workdirs.check_config(workdir, config, trained=bool(steps(workdir)))
        if config.train.init and not steps(workdir):
            saved(config.train.init)
            fitting.check(config.train.init, config)
        if config.train.init_layers and not steps(workdir):
            depths.check(config, self.trainer.model)
        if not steps(workdir):
            structure.check(config)
        self.tokens_per_step = objective.tokens(config)
        self.available = plan.available(self.trainer.mesh)
        self.guard = Guard(config.train)

    def open(self) -> None:
        """Opens the data."""
        with self.goodput.spent("data"):
            self.batches = self.task.batches(*meshes.process_rows(self.trainer.mesh, self.config.train.batch))
            self.bytes_per_token = self.task.bytes_per_token

    def prepare(self) -> None:
        """Compiles the step and makes the plan."""
        with self.goodput.spent("compile"):
            self.flops_per_token = self.trainer.flops_per_token()
            self.hardware_flops_per_token = self.trainer.hardware_flops_per_token()
            self.compiled = self.trainer.compile()
        tokens = self.config.train.steps * self.tokens_per_step
        per_token = self.flops_per_token, self.hardware_flops_per_token
        self.plan = plan.make(self.task, self.trainer, self.compiled, tokens, per_token, self.available)

    def start(self, checkpoints: Checkpoints) -> TrainState:
        """The state to start from: the latest checkpoint, else the weights of train.init, else random weights."""
        with self.goodput.spent("checkpoint"):
            found = checkpoints.resume(self.trainer)
        if found is not None:
            state, data = found
            self.batches.restore(data["batches"])
            self.guard.restore(data.get("guard"))
            log.info("resuming %s at step %d", self.workdir, int(state.step))
            self.compare_rates(int(state.step))
            return state
        self.guard.restore(None)
        state = self.first()
        save_frozen(self.workdir, state.frozen)
        return state

    def first(self) -> TrainState:
        """The state of a new run."""
        source = self.config.train.init
        if not source:
            return self.trainer.init()
        if self.config.train.init_layers:
            found = depths.start(self.config, self.trainer.model, self.trainer.fresh(), self.trainer.mesh)
            return self.trainer.init(self.trainer.adapted(found))
        found = initial(source, self.config, self.trainer.model, self.trainer.mesh)
        if lacking := self.trainer.abstract.params.keys() - found["params"].keys():  # heads that the checkpoint lacks
            if self.config.train.lora_rank:
                raise UserError(f"train.lora_rank cannot add {', '.join(sorted(lacking))}; fine-tune without it first")
            found["params"] = self.trainer.fresh()["params"] | found["params"]
        return self.trainer.init(self.trainer.adapted(found))

    def compare_rates(self, step: int) -> None:
        """Warns if a changed number of steps makes the learning rate jump at `step`."""
        before = workdirs.saved_config(self.workdir)
        if before is None:
            return
        old, new = (float(optimizer.schedule(config.train)(step)) for config in (before, self.config))
        if not 0.95 * old <= new <= 1.05 * old:
            span = optimizer.decay_steps(before.train)
            log.warning(
                "the learning rate jumps from %.3g to %.3g at step %d, because the %s schedule now has %d steps instead of %d; "
                "--config.train.decay_steps=%d keeps it at %.3g",
                old, new, step, self.config.train.schedule, optimizer.decay_steps(self.config.train), span, span, old,
            )  # fmt: skip

    def logger(self) -> loggers.Logger | None:
        """The additional logger, see train.logger. Raises UserError if it cannot start."""
        name = self.config.train.logger if jax.process_index() == 0 else None
        return loggers.start(name, self.workdir, workdirs.flat(to_dict(self.config)))

    def writer(self, step: int, logger: loggers.Logger | None) -> metrics.MetricsWriter:
        records = metrics.read(self.workdir)
        kept = [record for record in records if record["step"] <= step]
        self.goodput.resume(*(found[-1] if found else {} for found in (records, kept)))
        config, figures = workdirs.flat(to_dict(self.config)), ["loss", *(f"validation_{name}" for name in self.task.figures)]
        return metrics.MetricsWriter(self.workdir, step, metrics.described(config, figures), logger)

    def complete(self) -> dict[str, Any] | None:
        """The last record of a finished run; None if the run or its last evaluation is not finished."""
        records = metrics.read(self.workdir)
        last = records[-1] if records else {"step": 0}
        return last if last["step"] >= self.config.train.steps and self.judged(last["step"], records) else None

    def judged(self, step: int, records: list[dict[str, Any]] | None = None) -> bool:
        """Whether `step` has been evaluated; True if it is not to be evaluated."""
        if step < self.config.train.steps and (not (every := self.config.train.eval_every) or step % every):
            return True
        found = [record for record in records or metrics.read(self.workdir) if record["step"] == step]
        return bool(found and f"validation_{self.task.figures[0]}" in found[-1]) or not self.task.validates
