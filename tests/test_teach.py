"""`jaxseq teach`: texts of a teacher, its logits on disk, and what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest
from helpers.train_tiny import small, write_documents

import jaxseq
from jaxseq import UserError, cli, data
from jaxseq.generation import generate
from jaxseq.train import load, save_params, train
from jaxseq.train.objectives import distillation

SIZES = {"model.width": 32, "model.stack": "1*(attention swiglu)", "model.attention.heads": 4}


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    return write_documents(tmp_path_factory.mktemp("documents"))


@pytest.fixture(scope="module")
def teacher(documents, tmp_path_factory):
    """The workdir of a small Transformer with random weights."""
    config = jaxseq.config("transformer", **small(documents) | SIZES | {"model.vocab": 257, "data.tokenizer": "byte"})
    params = jaxseq.build(config).init(jax.random.key(0))["params"]
    save_params(folder := tmp_path_factory.mktemp("teacher") / "run", config, params)
    return folder


@pytest.fixture(scope="module")
def cache(teacher, tmp_path_factory):
    """The teacher's 9 largest logits for 4 steps of 8 rows."""
    folder = tmp_path_factory.mktemp("cache") / "logits"
    words = [f"--workdir={teacher}", "--kind=logits", f"--out={folder}", "--steps=4", "--top_k=9"]
    assert cli.main(["teach", *words, "--config.train.batch=8"]) == 0
    return folder


def student(documents, **more):
    own = {"train.objective": "distillation", "train.distill_alpha": 1.0, "train.steps": 4, "train.decay_steps": 4}
    return jaxseq.config("transformer", **small(documents) | SIZES | own | more)


def losses(config, folder) -> list[float]:
    records = []
    train(config, folder, progress=records.append, devices=jax.devices()[:1])
    return [record["loss"] for record in records if "loss" in record]


def test_texts_are_prompts_and_the_teachers_continuations(teacher, documents, tmp_path, capsys):
    words = ["teach", f"--workdir={teacher}", "--kind=text", "--documents=9", "--prompt=5", "--tokens=7", "--temperature=0"]
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        assert cli.main([*words, f"--out={tmp_path / name}.jsonl", f"--seed={seed}"]) == 0
    one, same, other = ((tmp_path / f"{name}.jsonl").read_bytes() for name in ("one", "same", "other"))
    assert one == same != other
    model, params, config = load(teacher)
    corpus = data.corpus(config.data, tokenizer := data.tokenizer(config.data))
    read = "\n".join(tokenizer.decode(corpus.train[i][1:]) for i in range(len(corpus.train)))
    found = [json.loads(line)["text"] for line in one.decode().splitlines()]
    prompts = [[corpus.train.start, *text.encode()[:5]] for text in found]
    assert len(set(found)) > 5 and all(text[:5] in read for text in found)
    wanted = generate(model, params, prompts, max_tokens=7, temperature=0, tokenizer=tokenizer, rows=8)
    assert found == [tokenizer.decode([*prompt[1:], *new]) for prompt, new in zip(prompts, wanted, strict=True)]
    assert cli.main([*words, f"--out={tmp_path / 'one'}.jsonl"]) == 2
    assert "exists; choose another file" in capsys.readouterr().err
    fields = {"data.path": str(tmp_path / "one.jsonl"), "data.source": "jsonl", "data.validation_every": 3}
    own = data.corpus(jaxseq.config("transformer", **fields).data)
    assert len(own.train) + len(own.validation) == 9


def test_a_student_learns_the_same_from_the_cache_as_from_the_teacher(teacher, cache, documents, tmp_path):
    """Also when it is interrupted. Each process reads its part."""
    live = losses(student(documents, **{"train.distill_teacher": str(teacher), "train.distill_top_k": 9}), tmp_path / "live")
    fields = {"train.distill_cache": str(cache)}
    kept = losses(student(documents, **fields, **{"train.steps": 2}), tmp_path / "kept")
    kept += losses(student(documents, **fields), tmp_path / "kept")
    assert kept == pytest.approx(live, rel=1e-5)
    one, *two = (next(distillation.task(student(documents, **fields | {"train.distill_top_k": 2})).batches(i, n))
                 for i, n in ((0, 1), (0, 2), (1, 2)))  # fmt: skip
    assert one["taught_ids"].shape == (8, 32, 2)
    np.testing.assert_array_equal(one["taught_logits"], np.concatenate([part["taught_logits"] for part in two]))
    shutil.move(cache, tmp_path / "moved")
    assert cli.main(["eval", f"--workdir={tmp_path / 'kept'}"]) == 0  # needs no cache
    shutil.move(tmp_path / "moved", cache)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train.steps": 5}, "has 32 rows, but 5 steps of 8 need 40"),
        ({"data.seed": 1}, "was written for another data.seed"),
        ({"train.length": 16}, "was written for another train.length"),
        ({"data.validation_every": 5}, "was written for another text or tokenizer"),
        ({"train.distill_top_k": 10}, "holds 9 logits a token"),
        ({"train.distill_kind": "reverse"}, "train.distill_cache is for train.distill_kind=forward"),
        ({"train.objective": "mixer_maps"}, "train.objective=mixer_maps needs the teacher itself"),
        ({"model.vocab": 300}, "a teacher with a vocabulary of 257, not 300"),
        ({"train.distill_cache": "nowhere"}, "is not a folder of a teacher's logits"),
    ],
)
def test_a_cache_that_does_not_fit_is_refused_in_one_line(cache, documents, tmp_path, fields, message):
    with pytest.raises(UserError, match=message) as caught:
        losses(student(documents, **{"train.distill_cache": str(cache)} | fields), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_cache_of_another_teacher_is_refused(teacher, cache, documents, tmp_path):
    _, params, config = load(teacher)
    save_params(tmp_path / "other", config, jax.tree.map(lambda x: 2 * x, params))
    fields = {"train.distill_cache": str(cache), "train.distill_teacher": str(tmp_path / "other")}
    with pytest.raises(UserError, match="was not written by train.distill_teacher"):
        losses(student(documents, **fields), tmp_path / "run")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kind=maps"], "there is no --kind=maps; choose one of: text, logits"),
        (["--kind=text", "--steps=3"], "--steps has no meaning for --kind=text"),
        (["--kind=text", "--prompt=5000"], "no training document has 5000 tokens"),
        (["--kind=text", "--documents=0"], "give 1 or more of each"),
        (["--kind=logits", "--top_k=258"], "at most 257 logits"),
        (["--kind=logits", "--config.train.lr=1"], "--config.train.lr does not change what is written"),
    ],
)
def test_bad_arguments_are_one_line(teacher, tmp_path, capsys, words, message):
    assert cli.main(["teach", f"--workdir={teacher}", f"--out={tmp_path / 'out'}", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error and not (tmp_path / "out").exists()
