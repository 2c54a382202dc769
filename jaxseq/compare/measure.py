"""Measures costs against length: state bytes, training speed, training memory, decoding and prefill.

The trained models are measured. Every timed call has been compiled and run once before. Architectures are timed in turns
(A B C, A B C, …), so that other load on the machine slows all of them alike; figures are medians. If a figure cannot be
measured (out of memory), it is left out and the reason is recorded.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

import jaxseq
from jaxseq import forms, paths
from jaxseq.bench import energy, programs
from jaxseq.bench.timing import OnProgress, in_turns, silent
from jaxseq.errors import UserError
from jaxseq.train import checkpoints
from jaxseq.train.step import Trainer

COMPILING = 0.8  # approximate share of compilation in the time of a measurement
COMPILERS = 2  # programs compiled at the same time
COMPILE_EVENTS = ("/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration")


class MeasuredModel(NamedTuple):
    """A trained model and the devices of its training mesh."""

    config: ConfigDict
    model: Any
    params: Any
    devices: Sequence[jax.Device]
    step_bytes: dict[int, int]  # length -> bytes of a training step on one row, for the steps compiled so far


Models = Mapping[str, MeasuredModel]
Figures = dict[str, Any]  # name -> a number, or the exception that was raised instead


def _for_all(subjects: Models, make: Callable[[MeasuredModel], Any], on_progress: OnProgress) -> Figures:
    """{name: make(subject), or the exception that it raised}. Two run at a time: compiling releases Python's lock."""

    def attempt(subject: MeasuredModel) -> Any:
        try:
            return make(subject)
        except (jax.errors.JaxRuntimeError, MemoryError, UserError) as error:  # out of memory, or too long for the model
            return error

    with ThreadPoolExecutor(COMPILERS) as pool:
        made = {}
        for name, found in zip(subjects, pool.map(attempt, subjects.values()), strict=True):
            made[name] = found
            on_progress(len(made) / len(subjects), f"compiled {name}")
        return made


def _timed(subjects: Models, make: Callable[[MeasuredModel], Callable[[], Any]], rounds: int, on_progress: OnProgress) -> Figures:
    """Seconds of the calls that `make` returns, or the exceptions. Most of the time goes into compiling."""
    made = _for_all(subjects, make, lambda fraction, note: on_progress(COMPILING * fraction, note))
    able = {name: call for name, call in made.items() if not isinstance(call, Exception)}
    seconds = in_turns(able, rounds, lambda fraction, note: on_progress(COMPILING + (1 - COMPILING) * fraction, note))
    return {name: seconds.get(name, call) for name, call in made.items()}


def op_forms(config: ConfigDict, length: int) -> dict[str, str]:
    """{op: form} that this config's network uses for rows of `length` tokens. The network is traced, not run."""
    found: dict[str, str] = {}
    form = forms.plan(config.train.form, "train", seen=lambda op, form, *_: found.setdefault(op, form))
    init = functools.partial(jaxseq.build(config).init, form=form)
    jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((1, length), jnp.int32))
    return found


def state_bytes(model: Any, context: int) -> int:
    """Bytes of one row's state after `context` tokens."""
    return programs.bytes_of(jax.eval_shape(lambda: model.init_state(1, context)))


def disk_bytes(workdir: str | os.PathLike, step: int | None = None) -> int:
    """Bytes on disk of the weights of a checkpoint, by default the last one, with those that a run keeps frozen."""
    step = checkpoints.saved(workdir)[-1] if step is None else step
    folders = [checkpoints.folder(workdir) / str(step) / item for item in ("params", "collections")]
    folders.append(paths.of(workdir) / "frozen")
    return sum(paths.size(folder / name) for folder in folders if folder.exists() for name in paths.files(folder))


def _step_trainer(subject: MeasuredModel, rows: int, length: int) -> Trainer:
    return programs.step_trainer(subject.config, rows, length, subject.devices)


def train_speed(subjects: Models, length: int, tokens: int, rounds: int, on_progress: OnProgress = silent) -> Figures:
    """Tokens per second of whole training steps (gradients and update) of `tokens` tokens in rows of `length`."""
    rows = max(1, tokens // length)

    def make(subject: MeasuredModel) -> Callable[[], None]:
        step = programs.training(_step_trainer(subject, rows, length), subject.params)
        if rows == 1:
            subject.step_bytes[length] = step.bytes
        return step.call

    seconds = _timed(subjects, make, rounds, on_progress)
    return {name: value if isinstance(value, Exception) else rows * length / value for name, value in seconds.items()}


def train_memory(subjects: Models, length: int, on_progress: OnProgress = silent) -> Figures:
    """Bytes that the compiler plans for one training step on one row: temporaries, arguments, results. The step is not run."""
    # XLA's CPU backend optimisations run after memory planning: they take half of the compile time and change no byte.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None

    def make(subject: MeasuredModel) -> int:
        if length not in subject.step_bytes:
            trainer = _step_trainer(subject, 1, length)
            with trainer.scope():
                lowered = jax.jit(trainer.step, donate_argnums=0).lower(trainer.abstract, trainer.abstract_batch())
            subject.step_bytes[length] = programs.planned(lowered.compile(options))
        return subject.step_bytes[length]

    return _for_all(subjects, make, on_progress)


def decode(subjects: Models, context: int, steps: int, rounds: int, on_progress: OnProgress = silent) -> Figures:
    """Seconds per token of greedy decoding of one row, `steps` tokens at a time, at a context of `context` tokens."""

    def make(subject: MeasuredModel) -> Callable[[], None]:
        return programs.decoding(subject.model, subject.params, context, steps)

    seconds = _timed(subjects, make, rounds, on_progress)
    return {name: value if isinstance(value, Exception) else value / steps for name, value in seconds.items()}


def decode_energy(subjects: Models, context: int, steps: int, on_progress: OnProgress = silent) -> Figures:
    """Joules per token of greedy decoding of one row at a context of `context` tokens, see `jaxseq.bench.energy`."""
    if not (found := energy.counters()):
        return dict.fromkeys(subjects, UserError(energy.MISSING))

    def make(subject: MeasuredModel) -> Callable[[], None]:
        return programs.decoding(subject.model, subject.params, context, steps)

    calls = _for_all(subjects, make, lambda fraction, note: on_progress(COMPILING * fraction, note))
    return {name: call if isinstance(call, Exception) else energy.joules(call, found) / steps for name, call in calls.items()}


def prefill(subjects: Models, length: int, rounds: int, on_progress: OnProgress = silent) -> Figures:
    """Seconds of prefill with `length` tokens: the logits of the next token and the final state."""

    def make(subject: MeasuredModel) -> Callable[[], None]:
        return programs.reading(subject.model, subject.params, forms.freeze(subject.config.train.form), length)

    return _timed(subjects, make, rounds, on_progress)


def compiling() -> Callable[[], float]:
    """A function that returns the seconds that XLA has spent on lowering and compiling since this call."""
    clock = _compile_clock()
    before = clock()
    return lambda: clock() - before


@functools.cache
def _compile_clock() -> Callable[[], float]:
    """Compile seconds of this process. Registered once, because not every supported JAX can unregister a listener."""
    spent = 0.0

    def listen(event: str, seconds: float, **_: Any) -> None:
        nonlocal spent
        if event in COMPILE_EVENTS:
            spent += seconds

    jax.monitoring.register_event_duration_secs_listener(listen)
    return lambda: spent
