"""A model with running statistics: steps, micro-batches, bad steps, checkpoints and `train.init` handle them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxseq
from jaxseq.errors import UserError
from jaxseq.layers import Linear, metadata
from jaxseq.train import save_params
from jaxseq.train.checkpoints import Checkpoints
from jaxseq.train.step import prepare
from jaxseq.train.weights import restore_variables


class Centred(nn.Module):
    """A classifier of images minus a running mean, which is averaged with the mean of each batch."""

    classes: int = 3
    dtype = jnp.float32

    @nn.nowrap
    def init(self, rngs, *inputs):
        return nn.meta.unbox(super().init(rngs, *inputs))

    @nn.nowrap
    def example(self):
        return (jnp.zeros((1, 4, 4, 1)),)

    @nn.nowrap
    def boxed(self):
        return metadata(jax.eval_shape(super().init, jax.random.key(0), *self.example()))

    @nn.compact
    def __call__(self, images, train=False):
        mean = self.variable("batch_stats", "mean", jnp.zeros, ())
        if train and not self.is_initializing():
            mean.value = 0.5 * mean.value + 0.5 * jnp.mean(images)
        return Linear((self.classes,), (None, None, None, None), 3)(images - mean.value)


@pytest.fixture
def trainer(monkeypatch):
    monkeypatch.setattr(jaxseq, "build", lambda config: Centred())

    def make(**more):
        own = {"train.batch": 4, "model.size": 4, "model.patch": 2, "model.channels": 1, "train.warmup": 0, "train.steps": 9}
        return prepare(jaxseq.config("vit", **own | more), jax.devices()[:1])

    return make


def batch_of(values):
    """Rows of constant images."""
    rows = np.asarray(values, np.float32)
    ones = np.ones(len(rows), np.float32)
    images = np.broadcast_to(rows[:, None, None, None], (len(rows), 4, 4, 1))
    return {"images": images, "labels": np.arange(len(rows), dtype=np.int32) % 3, "weights": ones, "smoothing": 0 * ones}


def mean(state):
    return float(state.collections["batch_stats"]["mean"])


def test_statistics_follow_the_steps_and_not_a_bad_one(trainer):
    trainer = trainer()
    step, state = trainer.compile(), trainer.init()
    assert mean(state) == 0
    state, _ = step(state, batch_of([1, 2, 3, 4]))
    assert mean(state) == 1.25
    state, metrics = step(state, batch_of([1, 2, np.inf, 4]))
    assert mean(state) == 1.25 and not metrics["ok"]
    assert state.variables["batch_stats"] == state.collections["batch_stats"]


def test_micro_batches_change_them_in_turn(trainer):
    trainer = trainer(**{"train.accumulate": 2})
    state, _ = trainer.compile()(trainer.init(), batch_of([1, 2, 3, 4]))  # rows 0 and 2, then 1 and 3
    assert mean(state) == 0.5 * (0.5 * 2) + 0.5 * 3


def test_they_are_saved_and_taken_over(trainer, tmp_path):
    trainer = trainer()
    state, _ = trainer.compile()(trainer.init(), batch_of([1, 2, 3, 4]))
    kept = jax.device_get(state)
    with Checkpoints(tmp_path / "run", 1) as checkpoints:
        checkpoints.save(state, {}, trainer.config)
        checkpoints.wait()
        again, _ = checkpoints.restore(trainer, 1)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), kept)
    found = restore_variables(tmp_path / "run", trainer.abstract.variables)
    assert mean(trainer.init(found)) == 1.25
    save_params(tmp_path / "weights", trainer.config, kept.params)
    with pytest.raises(UserError, match="mean is missing, expected"):
        restore_variables(tmp_path / "weights", trainer.abstract.variables)
    save_params(tmp_path / "both", trainer.config, kept.variables)
    both = restore_variables(tmp_path / "both", trainer.abstract.variables)
    jax.tree.map(np.testing.assert_array_equal, both, kept.variables)
