"""The objectives hidden_states and matching: their losses, what they change, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.train_tiny import TEACHER, random_teacher, small, write_documents

import jaxseq
from jaxseq import UserError, recipes, weights
from jaxseq.config import from_dict, to_dict
from jaxseq.migrate import _convert
from jaxseq.models import restack
from jaxseq.train import load, prepare, save_params, train
from jaxseq.train.objectives import hidden_states


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    return write_documents(tmp_path_factory.mktemp("documents"))


@pytest.fixture(scope="module")
def teacher(documents, tmp_path_factory):
    """The workdir, config and params of `random_teacher`."""
    folder = tmp_path_factory.mktemp("teacher")
    return folder, *random_teacher(documents, folder)


def batch(time: int = 32) -> dict[str, jax.Array]:
    """Two documents in each row, and padding at the end of one."""
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, time + 1)), jnp.int32)
    pos = jnp.broadcast_to(jnp.where(jnp.arange(time) < 20, jnp.arange(time), jnp.arange(time) - 20), (8, time))
    pos = pos.at[0, -5:].set(-1)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "pos": pos, "weights": (pos >= 0).astype(jnp.float32)}


def trainer(teacher, objective: str, model: dict, **more):
    folder, config, _ = teacher
    own = {"train.objective": objective, "train.distill_teacher": str(folder), "train.distill_alpha": 1.0}
    return prepare(jaxseq.config("transformer", **small(config.data.path) | TEACHER | model | own | more), jax.devices()[:1])


def loss_of(made, params, teacher):
    state = made.init({"params": params})
    return made.objective.loss(made.model, state.variables, batch(), jax.random.key(0), form="chunkwise", train=False)


def test_a_copy_of_the_teacher_has_no_error(teacher):
    """Also if its blocks are joined in pairs."""
    params = teacher[2]
    joined = {"model.stack": "2*(attention swiglu attention swiglu)"}
    for model in ({}, joined):
        made = trainer(teacher, "hidden_states", model)
        own = restack.restacked(params, jaxseq.build(teacher[1]), made.model)
        total, sums, _ = loss_of(made, own, teacher)
        assert sums["hidden_states"] < 1e-9 * sums["tokens"] and abs(total) < 1e-8 * sums["tokens"] and sums["nats"] > 0


def test_hidden_states_are_compared_block_by_block(teacher):
    """With the streams computed by a model that is cut after each block."""
    made = trainer(teacher, "hidden_states", {"model.stack": "2*(attention swiglu)"})
    params = made.model.init(jax.random.key(3))["params"]
    rows, (_, config, theirs) = batch(), teacher

    def stream(model, params, blocks):
        cut = model.clone(repeats=(blocks,), last_norm=False)
        first = params | {"blocks_0": jax.tree.map(lambda x: x[:blocks], params["blocks_0"])}
        first.pop("final_norm")
        x_BTD = cut.apply({"params": first}, rows["tokens"], pos=rows["pos"], method="hidden")[0]
        return np.asarray(jnp.where(rows["pos"][..., None] >= 0, x_BTD, 0), np.float64)

    errors = []
    for own, other in ((1, 2), (2, 4)):  # the same depth
        x, z = stream(made.model, params, own), stream(jaxseq.build(config), theirs, other)
        errors.append(((x - z) ** 2).sum() / (z**2).sum())
    _, sums, _ = loss_of(made, params, teacher)
    np.testing.assert_allclose(sums["hidden_states"] / sums["tokens"], np.mean(errors), rtol=1e-5)


def migrated(teacher, to: str) -> recipes.Candidate:
    work = recipes.Candidate(teacher[1], teacher[2], lambda line: None)
    return _convert.student(work, _convert.targets(to), jax.random.key(2))


def test_matching_compares_mixers_on_the_teachers_inputs(teacher):
    """A window over all tokens has no error; a shorter one has, and only its parameters have gradients."""
    for to, small_error in (("window:32", True), ("window:3,attention", False)):
        student = migrated(teacher, to)
        model = {"model.stack": student.config.model.stack, "model.attention:window.window": int(to[7:].split(",")[0])}
        made = trainer(teacher, "matching", {**model, "model.attention:window.heads": 4})
        state = made.init({"params": student.params})
        grads, sums, _ = made.sums(state, batch(), jax.random.key(0))
        error = float(sums["matching"] / sums["tokens"])
        assert error < 1e-9 if small_error else error > 1e-3
        for path, grad in weights.leaves(grads).items():
            assert bool(jnp.any(grad != 0)) == (not small_error and "/attention:window/" in path), path


@pytest.mark.slow
def test_matching_learns_and_leaves_the_rest_as_it_is(teacher, documents, tmp_path):
    student = migrated(teacher, "gla,attention")
    save_params(tmp_path / "start", student.config, student.params)
    fields = {"train.objective": "matching", "train.init": str(tmp_path / "start"), "train.distill_teacher": str(teacher[0])}
    config = from_dict(to_dict(student.config), **fields, **{"train.steps": 25, "train.weight_decay": 0.0})
    records = []
    train(config, tmp_path / "run", progress=records.append, devices=jax.devices()[:1])
    assert records[-1]["matching"] < 0.7 * records[0]["matching"] and "validation_bits_per_byte" in records[-1]
    before, after = (weights.leaves(tree) for tree in (student.params, load(tmp_path / "run")[1]))
    for path, x in after.items():
        assert bool(jnp.any(x != before[path])) == ("/gla/" in path), path


@pytest.mark.parametrize(
    ("objective", "model", "message"),
    [
        ("hidden_states", {"model.width": 48}, "model.width=48 is not the teacher's 32"),
        ("matching", {}, "all mixers are those of the teacher"),
        ("matching", {"model.stack": "3*(attention swiglu)"}, "8 and 6 mixers of width 32 and 32"),
        ("matching", {"model.block": "sandwich"}, "different blocks, Residual and Sandwich"),
        ("hidden_states", {"model.vocab": 300}, "model.vocab=300 is not the teacher's 257"),
    ],
)
def test_students_that_do_not_fit_are_refused_in_one_line(teacher, objective, model, message):
    with pytest.raises(UserError, match=message) as caught:
        trainer(teacher, objective, model)
    assert "\n" not in str(caught.value)


def test_blocks_of_the_nearest_depth_are_compared():
    model = lambda stack: jaxseq.build(jaxseq.config("transformer", **TEACHER | {"model.stack": stack}))  # noqa: E731
    six, two, three = (model(f"{n}*(attention swiglu)") for n in (6, 2, 3))
    assert hidden_states.pairs(two, six) == [2, 5] and hidden_states.pairs(three, six) == [1, 3, 5]
    assert hidden_states.pairs(model("(attention swiglu attention swiglu) + 4*(attention swiglu)"), six) == [1, 2, 3, 4, 5]
