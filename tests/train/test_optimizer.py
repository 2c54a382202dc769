"""The optimiser: schedules, parameter groups, and errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.train_tiny import tiny

from jaxseq.errors import UserError
from jaxseq.layers import Parameter
from jaxseq.train import optimizer
from jaxseq.train.step import prepare


class Train(dict):
    __getattr__ = dict.__getitem__


TRAIN = Train(schedule="linear", steps=10, warmup=2, decay_fraction=0.1, final_lr=0.1, lr=0.1, beta1=0.9, beta2=0.99,
              eps=1e-8, weight_decay=0.1, clip=1.0)  # fmt: skip


def rates(config):
    rate = optimizer.schedule(config.train)
    return np.array([rate(step) for step in range(config.train.steps)])


@pytest.mark.parametrize("schedule", sorted(optimizer.DECAYS))
def test_schedule_warms_up_and_ends_where_it_says(tmp_path, schedule):
    config = tiny(tmp_path, **{
        "train.schedule": schedule, "train.steps": 100, "train.warmup": 10, "train.lr": 2.0, "train.final_lr": 0.25,
        "train.decay_fraction": 0.2,
    })  # fmt: skip
    values = rates(config)
    np.testing.assert_allclose(values[:10], 0.2 * np.arange(1, 11), rtol=1e-6)
    last = {"constant": 2.0}.get(schedule, 0.5)
    np.testing.assert_allclose(values[-1], last, rtol=1e-6)
    assert np.all(np.diff(values[10:]) <= 1e-6)
    middle = {"constant": 2.0, "wsd": 2.0, "linear": 1.25, "cosine": 1.25}[schedule]
    np.testing.assert_allclose(values[54], middle, rtol=1e-6)


def test_wsd_decays_over_its_last_fraction_alone(tmp_path):
    config = tiny(tmp_path, **{"train.schedule": "wsd", "train.steps": 50, "train.decay_fraction": 0.2, "train.lr": 1.0})
    values = rates(config)
    np.testing.assert_allclose(values[2:40], 1.0)
    np.testing.assert_allclose(values[40:], 1 - 0.9 * np.arange(1, 11) / 10, rtol=1e-5)


def test_each_leaf_is_in_the_group_its_metadata_names(tmp_path):
    """With zero gradients an update is lr * multiplier * decay * parameter, leaf by leaf."""
    config = tiny(tmp_path, **{"train.weight_decay": 0.5, "train.schedule": "constant", "train.warmup": 0})
    trainer = prepare(config, jax.devices()[:1])
    params = jax.tree.map(jnp.ones_like, trainer.init().params)
    updates, _ = trainer.optimizer.update(jax.tree.map(jnp.zeros_like, params), trainer.optimizer.init(params), params)
    boxes = trainer.model.boxed()["params"]
    boxes = jax.tree.leaves(boxes, is_leaf=lambda leaf: isinstance(leaf, Parameter))
    groups = {(box.decay, box.lr) for box in boxes}
    assert {decay for decay, _ in groups} == {True, False}
    for update, box in zip(jax.tree.leaves(updates), boxes, strict=True):
        np.testing.assert_allclose(update, -config.train.lr * box.lr * 0.5 * box.decay, rtol=1e-5)


def test_learning_rate_multiplier_scales_the_update():
    train = Train(TRAIN | {"schedule": "constant", "warmup": 0, "weight_decay": 0.0, "clip": 0.0})
    transform = optimizer.optimizer(train, {"a": Parameter(None, (None,)), "b": Parameter(None, (None,), decay=False, lr=0.25)})
    params = {"a": jnp.ones(3), "b": jnp.ones(3)}
    updates, _ = transform.update(jax.tree.map(jnp.ones_like, params), transform.init(params), params)
    np.testing.assert_allclose(updates["a"], -0.1, rtol=1e-5)
    np.testing.assert_allclose(updates["b"], -0.025, rtol=1e-5)


def test_updates_and_state_are_those_of_optax():
    """The tree of states is also the same, so that checkpoints are interchangeable."""
    params = {"a": jnp.linspace(-1, 1, 12).reshape(3, 4), "b": jnp.ones(5)}
    ours = optimizer.optimizer(TRAIN, {"a": Parameter(None, (None, None)), "b": Parameter(None, (None,))})
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0), optax.scale_by_adam(0.9, 0.99, 1e-8),
        optax.add_decayed_weights(0.1, {"a": True, "b": True}), optax.identity(),
        optax.scale_by_learning_rate(optimizer.schedule(TRAIN)),
    )  # fmt: skip
    one, other = ours.init(params), theirs.init(params)
    for scale in (3.0, 0.1, 1e-4, 0.0):  # above and below the limit
        grads = {name: scale * jnp.sin(7 * leaf + scale) for name, leaf in params.items()}
        update, one = jax.jit(ours.update)(grads, one, params)
        expected, other = jax.jit(theirs.update)(grads, other, params)
        chex.assert_trees_all_close((update, one), (expected, other), rtol=1e-6, atol=1e-7)


def test_a_refused_update_keeps_moments_and_counts():
    params = {"a": jnp.ones(3)}
    transform = optimizer.optimizer(TRAIN, {"a": Parameter(None, (None,))})
    refused, before = transform.update({"a": jnp.ones(3)}, transform.init(params), params, ok=jnp.array(False))
    chex.assert_trees_all_equal(before, transform.init(params))
    chex.assert_tree_all_finite(refused)
    _, before = transform.update({"a": jnp.array([1.0, -2.0, 0.5])}, transform.init(params), params)
    _, after = transform.update({"a": jnp.array([jnp.nan, jnp.inf, 1.0])}, before, params, ok=jnp.array(False))
    chex.assert_trees_all_equal(after, before)
    _, after = transform.update({"a": jnp.ones(3)}, before, params, ok=jnp.array(True))
    assert all(jnp.any(new != old) for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("warmup", 7, "train.warmup=7"),
        ("steps", 0, "train.steps=0"),
        ("schedule", "cosin", "choose one of constant, linear, cosine, wsd"),
        ("lr", 0.0, "train.lr=0.0"),
        ("beta2", 1.0, "train.beta2=1.0"),
        ("clip", -1.0, "train.clip=-1.0"),
        ("eps", 0.0, "train.eps=0.0"),
        ("objective", "next_tokn", "next_token"),
        ("batch", 7, "train.batch=7"),
        ("accumulate", 3, "train.accumulate=3"),
    ],
)
def test_a_run_that_makes_no_sense_is_refused_in_one_line(tmp_path, field, value, said):
    overrides = {"mesh.data": 1, f"train.{field}": value} | ({"train.accumulate": 2} if field == "batch" else {})
    with pytest.raises(UserError, match=said) as caught:
        prepare(tiny(tmp_path, **overrides), jax.devices()[:1])
    assert "\n" not in str(caught.value)
