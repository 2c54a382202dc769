"""The memory of a step besides its state, and of saving a checkpoint during training."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from helpers.compiler import users
from helpers.train_tiny import tiny

from jaxseq.train import checkpoints, prepare


def status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a part is told by Linux alone")
@pytest.mark.parametrize("beside", [True, False], ids=["beside steps", "as on the CPU"])
def test_saving_takes_at_most_the_state_once_more_and_on_the_cpu_a_part_of_it(beside, tmp_path, monkeypatch):
    """The next step overwrites the state that is being saved, so one copy is needed, and no more. On the CPU the step waits,
    and a few arrays are copied at a time."""
    monkeypatch.setattr(checkpoints, "COPY", 1 << 20)
    config = tiny(tmp_path, **{"model.stack": "6*(attention swiglu)", "model.width": 512})
    trainer = prepare(config, jax.devices()[:1])
    state, at_once = trainer.init(), None if beside else checkpoints.copied_at_once(trainer.abstract)
    step = jax.jit(functools.partial(jax.tree.map, lambda leaf: leaf + jnp.ones((), leaf.dtype)), donate_argnums=0)
    state = step(state._replace(ok=jnp.zeros((), jnp.int32)))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert size > 200e6 and (beside or at_once < size / 8)
    with checkpoints.Checkpoints(tmp_path / "run", 1, at_once) as saved:
        for _ in range(2):  # the first save also starts Orbax's threads
            Path("/proc/self/clear_refs").write_text("5")
            before = status("VmRSS")
            saved.save(state, {}, config)
            for _ in range(3):
                state = step(state)
            jax.block_until_ready(state)
            saved.wait()
    assert status("VmHWM") - before < (1.1 if beside else 0.5) * size


def test_a_small_state_is_written_while_training_goes_on(tmp_path):
    assert checkpoints.copied_at_once(prepare(tiny(tmp_path), jax.devices()[:1]).abstract) is None


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_writes_over_its_state_and_holds_two_sets_of_gradients_at_most(tmp_path, accumulate):
    """Rows are so few and short that activations are negligible. With accumulation there are two sets: the sum and the next."""
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
