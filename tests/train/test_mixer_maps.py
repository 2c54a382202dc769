"""The objective mixer_maps: its equation, what it is invariant to, students of other architectures, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.train_tiny import TEACHER, random_teacher, small, write_documents

import jaxseq
from jaxseq import UserError
from jaxseq.train import prepare, train
from jaxseq.train.objectives import mixer_maps

RETNET = {"model.width": 48, "model.stack": "2*(retention swiglu)", "model.retention.heads": 4, "model.vocab": 257}


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    return write_documents(tmp_path_factory.mktemp("documents"))


@pytest.fixture(scope="module")
def teacher(documents, tmp_path_factory):
    """The workdir, and params of `random_teacher`."""
    folder = tmp_path_factory.mktemp("teacher")
    return folder, random_teacher(documents, folder)[1]


def learner(documents, teacher, name: str, model: dict, **more):
    own = {"train.objective": "mixer_maps", "train.distill_teacher": str(teacher[0]), "train.distill_alpha": 1.0}
    return jaxseq.config(name, **small(documents) | model | own | more)


def test_the_map_is_that_of_its_equation_within_documents():
    chance = np.random.default_rng(0)
    y, z = chance.normal(size=(2, 9, 5)), chance.normal(size=(2, 9, 7))
    pos = np.array([[0, 1, 2, 3, 0, 1, 2, -1, -1], [4, 5, 0, 1, 2, 3, 4, 5, 6]], np.int32)
    total = 0.0
    for b, starts in enumerate([(0, 4, 7), (0, 2, 9)]):
        for first, end in zip(starts, starts[1:], strict=False):
            for t in range(first, end):
                rows = [x[b, first : t + 1] @ x[b, t] for x in (y, z)]
                total += sum((rows[0] / np.linalg.norm(rows[0]) - rows[1] / np.linalg.norm(rows[1])) ** 2)
    got = mixer_maps.distance(jnp.asarray(y, jnp.float32), jnp.asarray(z, jnp.float32), jnp.asarray(pos))
    np.testing.assert_allclose(got, total / 16, rtol=1e-5)
    rotation = np.linalg.qr(chance.normal(size=(5, 5)))[0]
    turned = jnp.asarray(3 * y @ rotation, jnp.float32)
    np.testing.assert_allclose(mixer_maps.distance(turned, jnp.asarray(y, jnp.float32), jnp.asarray(pos)), 0, atol=1e-9)


def test_a_copy_has_no_error_and_gradients_at_zero_outputs_are_finite(documents, teacher):
    made = prepare(learner(documents, teacher, "transformer", TEACHER), jax.devices()[:1])
    batch = {name: jnp.zeros(x.shape, x.dtype) for name, x in made.abstract_batch().items()}
    length = made.config.train.length
    tokens = jax.random.randint(jax.random.key(0), batch["tokens"].shape, 0, 256)
    batch |= {"tokens": tokens, "pos": jnp.broadcast_to(jnp.arange(length), tokens.shape), "weights": jnp.ones(tokens.shape)}
    gradients = jax.jit(made.sums)
    for params, least, most in ((teacher[1], -1.0, 1e-8), (jax.tree.map(jnp.zeros_like, teacher[1]), 0.1, 4.0)):
        grads, sums, _ = gradients(made.init({"params": params}), batch, jax.random.key(0))
        assert least < sums["mixer_maps"] / sums["tokens"] < most
        assert all(bool(jnp.isfinite(grad).all()) for grad in jax.tree.leaves(grads))


def test_a_student_of_another_architecture_and_width_learns_the_maps(documents, teacher, tmp_path):
    records = []
    config = learner(documents, teacher, "retnet", RETNET, **{"train.steps": 25})
    train(config, tmp_path / "run", progress=records.append, devices=jax.devices()[:1])
    assert records[-1]["mixer_maps"] < 0.7 * records[0]["mixer_maps"]
    assert records[-1]["loss"] == pytest.approx(records[-1]["mixer_maps"], rel=1e-4)  # with distill_alpha=1


def test_a_model_without_such_mixers_is_refused(documents, teacher):
    with pytest.raises(UserError, match="model.stack has no mixer that relates tokens, as train.objective=mixer_maps needs"):
        prepare(learner(documents, teacher, "transformer", TEACHER | {"model.stack": "2*(swiglu)"}), jax.devices()[:1])
