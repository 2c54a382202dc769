"""What a step takes in memory beside its state, and what saving costs while training goes on."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from helpers.compiler import users
from helpers.train_tiny import tiny

from jaxseq.train import prepare
from jaxseq.train.checkpoints import Checkpoints


def status(field: str) -> int:
    """Bytes that /proc tells of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a part is told by Linux alone")
def test_saving_takes_at_most_the_state_once_more(tmp_path):
    """The next step writes over the state that is being saved: that one copy is needed, and no more than it."""
    config = tiny(tmp_path, **{"model.width": 128, "model.vocab": 100_000})
    state = prepare(config, jax.devices()[:1]).init()
    step = jax.jit(functools.partial(jax.tree.map, lambda leaf: leaf + jnp.ones((), leaf.dtype)), donate_argnums=0)
    state = step(state._replace(ok=jnp.zeros((), jnp.int32)))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert size > 150e6
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    with Checkpoints(tmp_path / "run", 1) as checkpoints:
        checkpoints.save(state, {}, config)
        for _ in range(3):
            state = step(state)
        jax.block_until_ready(state)
        checkpoints.wait()
    assert status("VmHWM") - before < 1.1 * size


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_writes_over_its_state_and_holds_two_sets_of_gradients_at_most(tmp_path, accumulate):
    """Rows so few and short that activations are nothing beside the parameters. Two with accumulation: the sum and the next."""
    config = tiny(tmp_path, **{
        "model.stack": "4*(attention swiglu)", "model.width": 128, "train.batch": 2, "train.length": 2, "train.clip": 1.0,
        "train.weight_decay": 0.1, "train.accumulate": accumulate,
    })  # fmt: skip
    trainer = prepare(config, jax.devices()[:1])
    params, state = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for tree in (trainer.abstract.params, trainer.abstract)
    )
    with trainer.scope():
        found = trainer.traced.lower().compile(users()).memory_analysis()
    assert 3 * params < state <= found.alias_size_in_bytes + 64
    assert params < found.temp_size_in_bytes < 2.3 * params
