"""The jitted step: accumulation is exact, a bad step changes nothing, random numbers depend on seed and step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.train_tiny import tiny

from jaxseq.train.diagnose import diagnose
from jaxseq.train.step import prepare


def batch_of(config, seed=0):
    """Rows with different numbers of weighted tokens; the last is only padding."""
    chance = np.random.default_rng(seed)
    shape = (config.train.batch, config.train.length)
    counts = chance.integers(1, shape[1], shape[0])
    counts[-1] = 0
    inside = np.arange(shape[1]) < counts[:, None]
    ids = chance.integers(0, 256, (shape[0], shape[1] + 1)).astype(np.int32)
    return {
        "tokens": jnp.asarray(ids[:, :-1]),
        "targets": jnp.asarray(ids[:, 1:]),
        "pos": jnp.asarray(np.where(inside, np.arange(shape[1]), -1).astype(np.int32)),
        "weights": jnp.asarray(inside.astype(np.float32)),
    }


def made(folder, **overrides):
    """(trainer, compiled step) for a config without dropout."""
    trainer = prepare(tiny(folder, **{"model.dropout": 0.0, "train.schedule": "constant"} | overrides), jax.devices()[:1])
    return trainer, trainer.compile()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return made(tmp_path_factory.mktemp("documents"))


def test_accumulated_steps_equal_the_step_on_the_whole_batch(plain, tmp_path):
    trainer, step = plain
    batch = batch_of(trainer.config)
    whole, metrics = step(trainer.init(), batch)
    parts, accumulated = made(tmp_path, **{"train.accumulate": 4})[1](trainer.init(), batch)
    assert metrics.keys() == accumulated.keys()
    for name in metrics:
        np.testing.assert_allclose(metrics[name], accumulated[name], rtol=2e-4, err_msg=name)
    # Adam's first update is the sign of the gradient unless this is near eps, so moments are compared, not weights.
    for one, other in zip(jax.tree.leaves(whole.optimizer), jax.tree.leaves(parts.optimizer), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-7)


def test_a_bad_step_leaves_the_state_as_it_was_and_so_do_all_later_ones(plain):
    trainer, compiled = plain
    state, batch = trainer.init(), batch_of(trainer.config)
    state, metrics = compiled(state, batch)
    assert metrics["ok"]
    before = jax.device_get(state)
    bad = batch | {"weights": batch["weights"].at[0, 0].set(jnp.inf)}
    state, metrics = compiled(state, bad)
    assert not metrics["ok"]
    state, metrics = compiled(state, batch)
    assert not metrics["ok"]
    after = jax.device_get(state)
    assert not after.ok
    jax.tree.map(np.testing.assert_array_equal, after._replace(ok=before.ok), before)
    assert "from finite parameters: every module's output is finite" in diagnose(trainer, state, bad)


def test_an_update_that_overflows_leaves_the_parameters_and_is_diagnosed(plain):
    """The gradients are finite, so the moments are already updated."""
    trainer, compiled = plain
    state, batch = trainer.init(), batch_of(trainer.config)
    low = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e-40), state.optimizer[1].nu)
    high = jax.tree.map(lambda leaf: jnp.full_like(leaf, 3e38), state.optimizer[1].mu)
    adam = state.optimizer[1]._replace(mu=high, nu=low)
    state = state._replace(optimizer=(state.optimizer[0], adam, *state.optimizer[2:]))
    before = jax.device_get(state.params)
    state, metrics = compiled(state, batch)
    assert not metrics["ok"] and not state.ok and int(state.step) == 0
    assert np.isfinite(metrics["grad_norm"]) and not np.isfinite(metrics["update_norm"])
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), before)
    assert "under finite gradients" in diagnose(trainer, state, batch)


def test_dropout_is_a_function_of_seed_and_step(tmp_path):
    trainer = prepare(tiny(tmp_path, **{"model.dropout": 0.5}), jax.devices()[:1])
    state, batch = trainer.init(), batch_of(trainer.config)
    loss = jax.jit(lambda step: trainer.gradients(state._replace(step=step), batch)[1]["loss"])
    first, again, second = (float(loss(jnp.int32(step))) for step in (0, 0, 1))
    assert first == again != second


def test_the_loss_is_that_of_the_weighted_tokens(plain):
    """Against plain numpy, with garbage under padding that must not count."""
    trainer, step = plain
    state, batch = trainer.init(), batch_of(trainer.config)
    logits, _ = jax.jit(trainer.model.apply)({"params": state.params}, batch["tokens"], pos=batch["pos"])
    logits = np.asarray(logits, np.float64)
    _, metrics = step(state, batch)
    nats = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, np.asarray(batch["targets"])[..., None], -1)[..., 0]
    weights = np.asarray(batch["weights"])
    np.testing.assert_allclose(metrics["loss"], (nats * weights).sum() / weights.sum(), rtol=1e-5)
    assert float(metrics["tokens"]) == weights.sum()


def test_a_small_model_learns_a_small_text(plain):
    trainer, step = plain
    rows, length = trainer.config.train.batch, trainer.config.train.length
    text = np.frombuffer(b"the people of the union, and the state of the union " * 4, np.uint8).astype(np.int32)
    pieces = np.stack([text[7 * row : 7 * row + length + 1] for row in range(rows)])
    batch = {
        "tokens": pieces[:, :-1],
        "targets": pieces[:, 1:],
        "pos": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "weights": np.ones((rows, length), np.float32),
    }
    state, losses = trainer.init(), []
    for _ in range(60):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[0] > 5 and losses[-1] < 0.5
