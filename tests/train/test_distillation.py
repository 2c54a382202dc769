"""The objective distillation: its divergences, its effect on a run, and errors."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.train_tiny import WORDS, finish, launch, small, write_documents

import jaxseq
from jaxseq import UserError, cli
from jaxseq.train import checkpoints, load, prepare, save_params, train
from jaxseq.train.objectives import distillation

STUDENT = {"model.width": 32, "model.stack": "1*(attention swiglu)", "model.attention.heads": 4}
TEACHER = {"model.width": 48, "model.stack": "2*(retention mlp)"}


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    return write_documents(tmp_path_factory.mktemp("documents"))


@pytest.fixture(scope="module")
def teacher(documents, tmp_path_factory):
    """The workdir of a small trained RetNet."""
    folder = tmp_path_factory.mktemp("teacher")
    train(jaxseq.config("retnet", **small(documents) | TEACHER | {"train.steps": 30}), folder, devices=jax.devices()[:1])
    return folder


def student(documents, teacher, **more):
    """The config of a small Transformer that learns only from the teacher, unless `more` changes that."""
    own = {"train.objective": "distillation", "train.distill_teacher": str(teacher), "train.distill_alpha": 1.0}
    return jaxseq.config("transformer", **small(documents) | STUDENT | own | more)


def run(config, workdir) -> list[dict]:
    """The records of a run on one device."""
    records = []
    train(config, workdir, progress=records.append, devices=jax.devices()[:1])
    return records


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_divergences_are_those_of_the_papers(dtype):
    chance = np.random.default_rng(0)
    teacher, learner = (jnp.asarray(3 * chance.normal(size=(2, 5, 11)), dtype) for _ in range(2))
    p, q = (softmax(np.asarray(logits, np.float64) / 2) for logits in (teacher, learner))
    forward, reverse = (p * np.log(p / q)).sum(-1), (q * np.log(q / p)).sum(-1)
    largest = p >= np.sort(p)[..., -3:-2]
    kept = np.where(largest, p, 0) / np.where(largest, p, 0).sum(-1, keepdims=True)
    top = np.where(largest, kept * np.log(np.maximum(kept, 1e-300) / q), 0).sum(-1)
    for wanted, kind, count in ((forward, "forward", 0), (reverse, "reverse", 0), (top, "forward", 3), (forward, "forward", 11)):
        got = distillation.divergence(teacher, learner, 2.0, kind, count)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(distillation.divergence(teacher, teacher), 0, atol=1e-6)


def test_without_the_teachers_part_it_is_next_token_bit_for_bit(documents, teacher, tmp_path):
    found = []
    for name, more in (("alpha", {"train.distill_alpha": 0.0}), ("plain", {"train.objective": "next_token"})):
        config = student(documents, teacher, **more | {"train.steps": 3})
        found.append(([record["loss"] for record in run(config, tmp_path / name)], load(tmp_path / name)[1]))
    assert found[0][0] == found[1][0]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found[0][1], found[1][1]))


def test_the_loss_is_the_weighted_sum_and_the_teacher_has_no_backward_pass(documents, teacher):
    more = {"train.distill_alpha": 0.25, "train.distill_temperature": 2.0, "train.accumulate": 2}
    trainer = prepare(student(documents, teacher, **more | {"model.vocab": 257}), jax.devices()[:1])
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, 33)), jnp.int32)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": jnp.ones((8, 32))}
    batch["pos"] = jnp.broadcast_to(jnp.arange(32), (8, 32))
    before = load(teacher)[1]
    state, values = trainer.compile()(trainer.init(), batch)
    assert values["distillation"] > 0.1
    np.testing.assert_allclose(values["loss"], 0.75 * values["nats"] + 0.25 * 4 * values["distillation"], rtol=1e-5)
    kept = state.constants["teacher"].params
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), kept, before)) and state.collections == {}
    alone = prepare(student(documents, None, **{"train.objective": "next_token", "model.vocab": 257}), jax.devices()[:1])
    theirs = prepare(jaxseq.config("retnet", **small(documents) | TEACHER | {"model.vocab": 257}), jax.devices()[:1])
    wanted = alone.flops_per_token() + theirs.flops_per_token() / 3
    np.testing.assert_allclose(trainer.flops_per_token(), wanted, rtol=0.05)


def test_the_student_ends_closer_to_its_teacher_than_alone(documents, teacher, tmp_path):
    """On held-out text, after equally many tokens with one seed."""
    chance = random.Random(1)
    text = " ".join(chance.choice(WORDS) for _ in range(60))
    tokens = jnp.asarray([list(text.encode())])
    logits = lambda model, params, _: model.apply({"params": params}, tokens)[0]  # noqa: E731
    taught, found = logits(*load(teacher)), {}
    for name in ("next_token", "distillation"):
        more = {"train.objective": name, "train.steps": 60, "train.log_every": 60, "train.checkpoint_every": 0}
        records = run(student(documents, teacher, **more), tmp_path / name)
        assert ("distillation" in records[-1]) == (name == "distillation") and "validation_bits_per_byte" in records[-1]
        found[name] = float(distillation.divergence(taught, logits(*load(tmp_path / name))).mean())
    assert found["distillation"] < 0.8 * found["next_token"], found


@pytest.mark.parametrize("more", [{"train.distill_kind": "reverse"}, {"train.distill_top_k": 8}])
@pytest.mark.slow
def test_the_other_divergences_fall_too(documents, teacher, tmp_path, more):
    records = run(student(documents, teacher, **more | {"train.steps": 12}), tmp_path)
    assert 0 < records[-1]["distillation"] < 0.8 * records[0]["distillation"]


def test_a_run_resumes_even_if_its_teacher_has_moved(documents, teacher, tmp_path):
    fields = {"train.distill_teacher": str(tmp_path / "teacher"), "train.decay_steps": 6}
    (tmp_path / "teacher").symlink_to(teacher)
    whole = run(student(documents, teacher, **fields), tmp_path / "whole")
    parts = run(student(documents, teacher, **fields | {"train.steps": 3}), tmp_path / "parts")
    (tmp_path / "teacher").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"train\.distill_teacher"):
        run(student(documents, teacher, **fields), tmp_path / "parts")
    parts += run(student(documents, teacher, **fields | {"train.distill_teacher": str(tmp_path / "moved")}), tmp_path / "parts")
    assert [record["loss"] for record in parts if "loss" in record] == pytest.approx([r["loss"] for r in whole], rel=1e-6)
    with checkpoints.manager(tmp_path / "parts", create=False) as manager:
        assert set(manager.item_metadata(6).keys()) == {"params", "optimizer", "data", "config"}
    (tmp_path / "moved").unlink()
    assert cli.main(["eval", f"--workdir={tmp_path / 'parts'}"]) == 0  # needs no teacher


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train.distill_teacher": ""}, "needs a teacher"),
        ({"train.distill_teacher": "nowhere"}, "not the workdir of a run"),
        ({"train.distill_kind": "sideways"}, "choose one of: forward, reverse"),
        ({"train.distill_kind": "reverse", "train.distill_top_k": 4}, "would be infinite"),
        ({"train.distill_top_k": 300}, "larger than the vocabulary"),
        ({"train.distill_alpha": 1.5}, "distill_alpha"),
        ({"model.vocab": 300}, "model.vocab=300 is not the teacher's 257"),
        ({"data.tokenizer": "words.json"}, "not the tokenizer of train.distill_teacher"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(documents, teacher, tmp_path, monkeypatch, fields, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        train(student(documents, teacher, **fields), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_a_teacher_that_is_no_language_model_is_refused(documents, tmp_path):
    sizes = {"model.width": 32, "model.heads": 2, "model.hidden": 48, "model.layers": 1, "model.vocab": 258}
    config = jaxseq.config("bert", **sizes)
    model = jaxseq.build(config)
    save_params(tmp_path / "bert", config, model.init(jax.random.key(0), *model.example())["params"])
    with pytest.raises(UserError, match="is not a language model"):
        train(student(documents, tmp_path / "bert"), tmp_path / "run")


ON_EIGHT = """
import json, sys
from jaxseq.config import from_dict
from jaxseq.train import train

train(from_dict(json.loads(sys.argv[1])), sys.argv[2], progress=lambda record: print(json.dumps(record["loss"]), flush=True))
"""


@pytest.mark.slow
def test_eight_devices_learn_as_one_does(documents, teacher, tmp_path):
    one = student(documents, teacher, **{"train.steps": 4})
    eight = student(documents, teacher, **{"train.steps": 4, "mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2})
    process = launch(eight, tmp_path / "eight", devices=8, code=ON_EIGHT)
    losses = [record["loss"] for record in run(one, tmp_path / "one")]
    np.testing.assert_allclose([float(line) for line in finish(process, 300).splitlines()], losses, rtol=1e-4)
