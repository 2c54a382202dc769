"""The calls that are timed: a training step, prefill and decoding. Each is compiled and has run once."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxseq import forms
from jaxseq.errors import UserError
from jaxseq.train import mesh as meshes
from jaxseq.train import prepare
from jaxseq.train.step import Trainer


class TimedStep(NamedTuple):
    """A training step: `call` runs it, `bytes` is the memory that the compiler plans for it."""

    call: Callable[[], None]
    bytes: int


def step_trainer(config: ConfigDict, rows: int, length: int, devices: Sequence[jax.Device] | None = None) -> Trainer:
    """The trainer of `config` for batches of `rows` rows of `length` tokens."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.train.batch, config.train.length, config.train.accumulate = rows, length, 1
    return prepare(config, devices)


def training(trainer: Trainer, params: Any) -> TimedStep:
    """Whole training steps (gradients and update) on random tokens."""
    compiled = trainer.compile()
    # A step donates its state, so the parameters are copied: other measurements still read them. The copy is made on the host,
    # where it needs no compiled program.
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), trainer.abstract)
    state = empty._replace(ok=np.ones((), bool), params=jax.tree.map(np.array, params))
    state = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), state, trainer.abstract)
    rows, length = trainer.config.train.batch, trainer.config.train.length
    random = np.random.default_rng(0).integers(0, trainer.model.vocab, (rows, length))
    batch = {name: random.astype(leaf.dtype) for name, leaf in trainer.abstract_batch().items()}
    batch["pos"] = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    batch["weights"] = np.ones((rows, length), np.float32)
    batch = meshes.put_batch(batch, trainer.mesh, rows)

    def call() -> None:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))

    call()
    return TimedStep(call, planned(compiled))


def planned(compiled: jax.stages.Compiled) -> int:
    """Bytes that the compiler plans: temporaries, arguments, results."""
    plan = compiled.memory_analysis()
    donated = plan.alias_size_in_bytes  # results stored in place of arguments
    return plan.temp_size_in_bytes + plan.argument_size_in_bytes + plan.output_size_in_bytes - donated


def bytes_of(tree: Any) -> int:
    """Of all arrays of a tree."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


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


def decoding(model: Any, params: Any, context: int, steps: int) -> Callable[[], None]:
    """Greedy decoding of `steps` tokens of one row at a context of `context` tokens. Later calls continue from the
    last state. If its count exceeds `context`, the ring buffer wraps, at the same cost."""
    carry = full_state(model, context, steps), jnp.zeros((1,), jnp.int32)
    capacity_B = model.remaining_capacity(carry[0])
    if capacity_B is not None and int(capacity_B[0]) < steps:
        raise UserError(f"the model's table of positions is shorter than {context:,} tokens")
    jax.block_until_ready(carry := _decode(model, steps, params, *carry))

    def call() -> None:
        nonlocal carry
        carry = jax.block_until_ready(_decode(model, steps, params, *carry))

    return call


@functools.partial(jax.jit, static_argnames=("model", "form"))
def _prefill(model: Any, form: forms.Form, params: Any, tokens_BT: jax.Array) -> tuple[jax.Array, Any]:
    x_BTD, state = model.apply({"params": params}, tokens_BT, form=form, method="hidden")
    return model.apply({"params": params}, x_BTD[:, -1:], method="logits"), state


def reading(model: Any, params: Any, form: forms.Form, length: int) -> Callable[[], None]:
    """Prefill of a prompt of `length` tokens: the logits of the next token and the final state."""
    tokens_BT = np.random.default_rng(0).integers(0, 256, (1, length)).astype(np.int32)
    tokens = jnp.asarray(tokens_BT % model.vocab)
    jax.block_until_ready(_prefill(model, form, params, tokens))
    return lambda: jax.block_until_ready(_prefill(model, form, params, tokens))


def reads(*trees: Any) -> Callable[[], None]:
    """Reads all arrays once: a lower bound for decoding a token."""
    read = jax.jit(lambda leaves: [jnp.sum(leaf) for leaf in leaves])
    leaves = jax.tree.leaves(trees)
    jax.block_until_ready(read(leaves))
    return lambda: jax.block_until_ready(read(leaves))
