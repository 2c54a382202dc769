"""Measures costs against length: state bytes, training speed, training memory, decoding and prefill.

The trained models are measured. Every timed call has been compiled and run once before. Architectures are timed in turns
(A B C, A B C, …), so that other load on the machine slows all of them alike; figures are medians. If a figure cannot be
measured (out of memory), it is left out and the reason is recorded.
"""

import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import jaxseq
from jaxseq import forms
from jaxseq.errors import UserError
from jaxseq.train import mesh as meshes
from jaxseq.train import prepare
from jaxseq.train.step import Trainer

FASTEST = 0.05  # minimum seconds of one timing: short calls are repeated to reach it
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
OnProgress = Callable[[float, str], None]  # (fraction of a measurement that is done, current activity)


def silent(fraction: float, note: str) -> None:
    pass


def in_turns(calls: Mapping[str, Callable[[], Any]], rounds: int, on_progress: OnProgress = silent) -> dict[str, float]:
    """Median seconds per call of each. A call must block until its work is done. One warm-up call is not counted."""
    repeats = {name: max(1, math.ceil(FASTEST / max(_seconds(call, 1), 1e-6))) for name, call in calls.items()}
    laps: dict[str, list[float]] = {name: [] for name in calls}
    for lap in range(rounds):
        for name, call in calls.items():
            on_progress(lap / rounds, f"timing {name}")
            laps[name].append(_seconds(call, repeats[name]))
    return {name: statistics.median(found) for name, found in laps.items()}


def _seconds(call: Callable[[], Any], repeat: int) -> float:
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - start) / repeat


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
    return _bytes(jax.eval_shape(lambda: model.init_state(1, context)))


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def step_trainer(subject: MeasuredModel, rows: int, length: int) -> Trainer:
    config = subject.config.copy_and_resolve_references()
    with config.unlocked():
        config.train.batch, config.train.length, config.train.accumulate = rows, length, 1
    return prepare(config, subject.devices)


def train_speed(subjects: Models, length: int, tokens: int, rounds: int, on_progress: OnProgress = silent) -> Figures:
    """Tokens per second of whole training steps (gradients and update) of `tokens` tokens in rows of `length`."""
    rows = max(1, tokens // length)

    def make(subject: MeasuredModel) -> Callable[[], None]:
        trainer = step_trainer(subject, rows, length)
        compiled = trainer.compile()
        if rows == 1:
            subject.step_bytes[length] = _planned(compiled)
        # A step donates its state, so the parameters are copied: other measurements still read them. The copy is made on
        # the host, where it needs no compiled program.
        empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), trainer.abstract)
        state = empty._replace(ok=np.ones((), bool), params=jax.tree.map(np.array, subject.params))
        state = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), state, trainer.abstract)
        random = np.random.default_rng(0).integers(0, subject.model.vocab, (rows, length))
        batch = {name: random.astype(leaf.dtype) for name, leaf in trainer.abstract_batch().items()}
        batch["pos"] = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
        batch["weights"] = np.ones((rows, length), np.float32)
        batch = meshes.put_batch(batch, trainer.mesh, rows)

        def call() -> None:
            nonlocal state
            state, metrics = compiled(state, batch)
            jax.block_until_ready((state, metrics))

        call()
        return call

    seconds = _timed(subjects, make, rounds, on_progress)
    return {name: value if isinstance(value, Exception) else rows * length / value for name, value in seconds.items()}


def train_memory(subjects: Models, length: int, on_progress: OnProgress = silent) -> Figures:
    """Bytes that the compiler plans for one training step on one row: temporaries, arguments, results. The step is not run."""
    # XLA's CPU backend optimisations run after memory planning: they take half of the compile time and change no byte.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None

    def make(subject: MeasuredModel) -> int:
        if length not in subject.step_bytes:
            trainer = step_trainer(subject, 1, length)
            with trainer.scope():
                lowered = jax.jit(trainer.step, donate_argnums=0).lower(trainer.abstract, trainer.abstract_batch())
            subject.step_bytes[length] = _planned(lowered.compile(options))
        return subject.step_bytes[length]

    return _for_all(subjects, make, on_progress)


def _planned(compiled: jax.stages.Compiled) -> int:
    plan = compiled.memory_analysis()
    donated = plan.alias_size_in_bytes  # results stored in place of arguments
    return plan.temp_size_in_bytes + plan.argument_size_in_bytes + plan.output_size_in_bytes - donated


@functools.partial(jax.jit, static_argnames=("model", "steps"), donate_argnames="state")
def _decode(model: Any, steps: int, params: Any, state: Any, token_B: jax.Array) -> tuple[Any, jax.Array]:
    def step(carry, _):
        state, token_B = carry
        logits_BTV, state = model.apply({"params": params}, token_B[:, None], state=state, form="recurrent")
        return (state, jnp.argmax(logits_BTV[:, 0], axis=-1).astype(jnp.int32)), None

    return jax.lax.scan(step, (state, token_B), length=steps)[0]


def full_state(model: Any, context: int, steps: int) -> Any:
    """An artificial state of a row after `context` - `steps` tokens. Decoding from it costs as much as from a real one."""

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        counts = jnp.issubdtype(leaf.dtype, jnp.integer)
        return jnp.full(leaf.shape, max(context - steps, 1) if counts else 0.01, leaf.dtype)

    return jax.tree.map(fill, jax.eval_shape(lambda: model.init_state(1, context)))


def decode(subjects: Models, context: int, steps: int, rounds: int, on_progress: OnProgress = silent) -> Figures:
    """Seconds per token of greedy decoding of one row, `steps` tokens at a time, at a context of `context` tokens."""

    def make(subject: MeasuredModel) -> Callable[[], None]:
        carry = full_state(subject.model, context, steps), jnp.zeros((1,), jnp.int32)
        capacity_B = subject.model.remaining_capacity(carry[0])
        if capacity_B is not None and int(capacity_B[0]) < steps:
            raise UserError(f"the model's table of positions is shorter than {context:,} tokens")
        jax.block_until_ready(carry := _decode(subject.model, steps, subject.params, *carry))

        def call() -> None:
            nonlocal carry
            carry = jax.block_until_ready(_decode(subject.model, steps, subject.params, *carry))

        return call

    seconds = _timed(subjects, make, rounds, on_progress)
    return {name: value if isinstance(value, Exception) else value / steps for name, value in seconds.items()}


@functools.partial(jax.jit, static_argnames=("model", "form"))
def _prefill(model: Any, form: forms.Form, params: Any, tokens_BT: jax.Array) -> tuple[jax.Array, Any]:
    x_BTD, state = model.apply({"params": params}, tokens_BT, form=form, method="hidden")
    return model.apply({"params": params}, x_BTD[:, -1:], method="logits"), state


def prefill(subjects: Models, length: int, rounds: int, on_progress: OnProgress = silent) -> Figures:
    """Seconds to read a prompt of `length` tokens: to the logits of the next token and the final state."""
    tokens_BT = np.random.default_rng(0).integers(0, 256, (1, length)).astype(np.int32)

    def make(subject: MeasuredModel) -> Callable[[], None]:
        form = forms.freeze(subject.config.train.form)
        tokens = jnp.asarray(tokens_BT % subject.model.vocab)
        jax.block_until_ready(_prefill(subject.model, form, subject.params, tokens))
        return lambda: jax.block_until_ready(_prefill(subject.model, form, subject.params, tokens))

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
