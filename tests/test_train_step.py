"""The jitted step: accumulation is exact, a bad step changes nothing, randomness belongs to the step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_tiny import tiny

from jaxseq.train.diagnose import diagnose
from jaxseq.train.step import prepare


def batch_of(config, seed=0):
    """Rows with different numbers of weighted tokens, the last of them padding alone."""
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


def stepped(config, batch, steps=1):
    trainer = prepare(config, jax.devices()[:1])
    compiled, state = trainer.compile(), trainer.init()
    for _ in range(steps):
        state, metrics = compiled(state, batch)
    return state, metrics


@pytest.fixture(scope="module")
def no_dropout(tmp_path_factory):
    return {"model.dropout": 0.0}, tmp_path_factory.mktemp("documents")


def test_accumulated_steps_equal_the_step_on_the_whole_batch(no_dropout):
    overrides, folder = no_dropout
    config = tiny(folder, **overrides)
    whole, metrics = stepped(config, batch_of(config))
    parts, accumulated = stepped(tiny(folder, **overrides | {"train.accumulate": 4}), batch_of(config))
    assert metrics.keys() == accumulated.keys()
    for name in metrics:
        np.testing.assert_allclose(metrics[name], accumulated[name], rtol=2e-4, err_msg=name)
    # Adam's first update is the sign of the gradient wherever it is far from eps, so moments are compared, not weights.
    for one, other in zip(jax.tree.leaves(whole.optimizer), jax.tree.leaves(parts.optimizer), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-7)


def test_a_bad_step_leaves_the_state_as_it_was_and_so_do_all_later_ones(no_dropout):
    overrides, folder = no_dropout
    config = tiny(folder, **overrides)
    trainer = prepare(config, jax.devices()[:1])
    compiled, state = trainer.compile(), trainer.init()
    batch = batch_of(config)
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
    assert "the loss is" in diagnose(trainer, state, bad)
    leaves, tree = jax.tree.flatten(state.params)
    poisoned = state._replace(params=tree.unflatten([leaves[0] * jnp.nan, *leaves[1:]]))
    name = "/".join(key.key for key in jax.tree_util.tree_flatten_with_path(state.params)[0][0][0])
    assert f"parameter {name} was already bad" in diagnose(trainer, poisoned, batch)


def test_dropout_is_a_function_of_seed_and_step(no_dropout):
    _, folder = no_dropout
    config = tiny(folder, **{"model.dropout": 0.5})
    trainer = prepare(config, jax.devices()[:1])
    state, batch = trainer.init(), batch_of(config)
    loss = jax.jit(lambda params, step: trainer.gradients(params, batch, step)[1]["loss"])
    first, again, second = (float(loss(state.params, jnp.int32(step))) for step in (0, 0, 1))
    assert first == again != second


def test_the_loss_is_that_of_the_weighted_tokens(no_dropout):
    """Against plain numpy, with garbage under padding that must not count."""
    overrides, folder = no_dropout
    config = tiny(folder, **overrides)
    trainer = prepare(config, jax.devices()[:1])
    state, batch = trainer.init(), batch_of(config)
    _, metrics = jax.jit(trainer.gradients)(state.params, batch, jnp.int32(0))
    logits, _ = trainer.model.apply({"params": state.params}, batch["tokens"], pos=batch["pos"])
    logits = np.asarray(logits, np.float64)
    nats = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, np.asarray(batch["targets"])[..., None], -1)[..., 0]
    weights = np.asarray(batch["weights"])
    np.testing.assert_allclose(metrics["loss"], (nats * weights).sum() / weights.sum(), rtol=1e-5)
    assert float(metrics["tokens"]) == weights.sum()


def test_a_small_model_learns_a_small_text(no_dropout):
    overrides, folder = no_dropout
    config = tiny(folder, **overrides | {"train.steps": 60, "train.batch": 2})
    text = np.frombuffer(b"the people of the union, and the state of the union " * 4, np.uint8).astype(np.int32)
    length = config.train.length
    rows = np.stack([text[: length + 1], text[7 : length + 8]])
    batch = {"tokens": rows[:, :-1], "targets": rows[:, 1:], "pos": np.tile(np.arange(length, dtype=np.int32), (2, 1)),
             "weights": np.ones((2, length), np.float32)}  # fmt: skip
    _, metrics = stepped(config, batch, steps=60)
    assert metrics["loss"] < 0.5 < 5
