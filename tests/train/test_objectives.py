"""Objectives other than next_token: their rows, and whole runs."""

import functools
import json

import jax
import numpy as np
import pytest
from helpers.train_tiny import write_documents

import jaxseq
from jaxseq.data import labelled
from jaxseq.errors import UserError
from jaxseq.train import load_variables, save_params, train
from jaxseq.train import metrics as records_of
from jaxseq.train.objectives import classification, masked, span

RUN = {"data.validation_every": 4, "train.steps": 6, "train.batch": 8, "train.length": 32, "train.lr": 3e-3, "train.warmup": 1,
       "train.log_every": 1, "train.checkpoint_every": 4, "eval.batch": 4, "eval.documents": 3}  # fmt: skip
SMALL = {"model.width": 32, "model.heads": 2, "model.hidden": 48, "model.layers": 2}


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    return write_documents(tmp_path_factory.mktemp("documents"))


def small(name, documents, **overrides):
    where = {"data.source": "folder", "data.path": str(documents)}
    return jaxseq.config(name, **RUN | SMALL | where | overrides)


def test_masking_hides_as_the_paper_says():
    random, tokens = np.random.default_rng(0), np.arange(20_000, dtype=np.int32) % 200
    free = tokens != 7
    hidden, where = masked.corrupt(tokens, free, 0.15, 256, 200, random)
    chosen = np.isin(np.arange(len(tokens)), where)
    assert chosen.sum() == round(0.15 * free.sum()) and not chosen[~free].any()
    np.testing.assert_array_equal(hidden[~chosen], tokens[~chosen])
    share = np.mean(hidden[chosen] == 256), np.mean(hidden[chosen] == tokens[chosen])
    np.testing.assert_allclose(share, (0.8, 0.1), atol=0.03)
    assert hidden[chosen & (hidden != 256)].max() < 200
    nothing = masked.corrupt(tokens[:3], np.zeros(3, bool), 0.15, 256, 200, random)
    assert len(nothing[1]) == 0


def test_what_is_hidden_depends_on_the_row_alone(documents):
    """Not on the batch size, the number of processes, or the point of resumption."""
    task = masked.task(small("bert", documents))
    whole = next(task.batches(0, 1))["tokens"]
    halves = [next(task.batches(process, 2))["tokens"] for process in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves), whole)
    first = task.batches(0, 1)
    next(first)
    second = task.batches(0, 1)
    second.restore(first.state())
    np.testing.assert_array_equal(next(first)["at"], next(second)["at"])


def test_a_run_that_fills_in_masked_bytes(documents, tmp_path):
    config = small("bert", documents, **{"train.steps": 6})
    record = train(config, tmp_path)
    rows = records_of.read(tmp_path)
    assert rows[-1]["loss"] < rows[0]["loss"] and "bits_per_byte" not in rows[0]
    model, variables, config = load_variables(tmp_path)
    task = masked.task(config)
    assert model.vocab == task.tokenizer.vocab + 1
    result = task.evaluate(model, variables)
    assert result["loss"] == pytest.approx(record["validation_loss"], rel=1e-4) and result["tokens"] > 0


def test_what_makes_no_sense_is_refused_in_one_line(documents, tmp_path):
    with pytest.raises(UserError, match=r"train\.corruption=0"):
        masked.task(small("bert", documents, **{"train.corruption": 0}))
    with pytest.raises(UserError, match="smaller than the tokenizer's 257 ids and 1 of train.objective=masked"):
        masked.task(small("bert", documents, **{"model.vocab": 257}))
    for name, objective, field in (
        ("bert", "next_token", "stack"),
        ("transformer", "masked", "masked_head"),
        ("bert", "span", "enc"),
    ):
        with pytest.raises(UserError, match=rf"train\.objective={objective} cannot train .*model\.{field}"):
            train(jaxseq.config(name, **{"train.objective": objective}), tmp_path)
    with pytest.raises(UserError, match="learned 16 positions"):
        train(small("bert", documents, **{"model.max_positions": 16}), tmp_path)


def squares(path, count=48):
    """Images of two classes: bright at the top or at the bottom."""
    random = np.random.default_rng(0)
    labels = np.arange(count) // 3 % 2
    images = random.integers(0, 120, (count, 8, 8, 3))
    images[labels == 0, :4] += 120
    images[labels == 1, 4:] += 120
    np.savez(path, images=images.astype(np.uint8), labels=labels + 5)
    return path


VIT = {"model.size": 8, "model.patch": 4, "data.validation_every": 4, "train.lr": 1e-2}


def test_a_run_that_tells_images_apart(tmp_path):
    where = {"data.path": str(squares(tmp_path / "squares.npz"))}
    config = jaxseq.config("vit", **RUN | SMALL | VIT | where | {"train.steps": 30, "train.smoothing": 0.1, "eval.documents": 0})
    record = train(config, tmp_path / "run")
    assert record["validation_accuracy"] > 0.9 and record["tokens_seen"] == 30 * 8
    model, variables, config = load_variables(tmp_path / "run")
    assert model.classes == 2
    result = classification.task(config).evaluate(model, variables)
    assert (result["tokens"], result["rows"]) == (12, 12)
    assert classification.task(config).describe(result).endswith(", over 12 images")
    assert result["loss"] == pytest.approx(result["nats"])  # unsmoothed
    with pytest.raises(UserError, match="holds images of 8 pixels, but the model needs 16"):
        classification.task(jaxseq.config("vit", **RUN | VIT | where | {"model.size": 16}))


def lines(path, count=40):
    words = ("good fine great", "bad poor awful")
    text = [{"text": f"{n} it was {words[n % 2].split()[n % 3]}", "label": ("yes", "no")[n % 2]} for n in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in text))
    return path


def test_a_masked_model_goes_on_as_a_classifier_of_texts(documents, tmp_path):
    """The masked-token head is dropped, pooler and classifier are new, and everything else is loaded."""
    model = jaxseq.build(config := small("bert", documents, **{"model.vocab": 258}))
    before = model.init(jax.random.key(0), *model.example())["params"]
    save_params(tmp_path / "masked", config, before)
    where = {
        "data.path": str(lines(tmp_path / "lines.jsonl")), "data.validation_every": 5, "model.masked_head": False,
        "train.objective": "classification", "train.init": str(tmp_path / "masked"), "model.vocab": 258,
    }  # fmt: skip
    config = jaxseq.config("bert", **RUN | SMALL | where | {"train.steps": 1, "train.lr": 1e-30, "train.weight_decay": 0.0})
    record = train(config, tmp_path / "classes")
    assert 0 <= record["validation_accuracy"] <= 1
    model, after, config = load_variables(tmp_path / "classes")
    assert model.classes == 2 and before.keys() ^ after["params"].keys() == {"masked", "pool", "classifier"}
    for name in before.keys() & after["params"].keys():
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-30), before[name], after["params"][name])
    row = classification.task(config)._row("ab")
    assert row["tokens"][:5].tolist() == [256, 97, 98, 256, 0] and row["pos"][:5].tolist() == [0, 1, 2, 3, -1]


def test_a_folder_of_images(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (tmp_path / name).mkdir()
        for n in range(2):
            image.new("RGB", (20 + n, 30), colour).save(tmp_path / name / f"{n}.png")
    found = labelled.images(jaxseq.config("vit", **{"data.path": str(tmp_path)}).data, 8)
    assert found.classes == ("blue", "red") and found.labels.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(found.examples(3)["images"], np.broadcast_to([1, -1, -1], (8, 8, 3)))
    (tmp_path / "red" / "0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"0\.png cannot be read as an image"):
        found.examples(2)


def test_span_corruption_loses_nothing():
    """Source and targets together are the text; lengths are those of the batch."""
    random, sentinels, lengths = np.random.default_rng(0), np.arange(1000, 900, -1), []
    for length in (2, 3, 7, 100, 333):
        text = random.integers(0, 900, length)
        source, targets = span.corrupt(text, 0.15, 3.0, sentinels, 7777, random)
        cut, spans = span.counts(length, 0.15, 3.0)
        assert (len(source), len(targets)) == (length - cut + spans + 1, cut + spans + 1)
        assert source[-1] == targets[-1] == 7777
        pieces = dict(zip(sentinels[:spans], np.split(targets[:-1], np.flatnonzero(targets[:-1] > 900))[1:], strict=True))
        whole = [pieces[token][1:] if token > 900 else [token] for token in source[:-1]]
        np.testing.assert_array_equal(np.concatenate(whole), text)
        lengths.append(cut / spans)
    assert 2.5 < lengths[-1] < 3.5


@pytest.mark.slow
def test_a_run_that_fills_in_spans(documents, tmp_path):
    own = {"model.head_size": 16, "model.encoder_layers": 2, "model.decoder_layers": 2}
    sizes = {key: value for key, value in (SMALL | own).items() if key != "model.layers"}
    where = {"data.source": "folder", "data.path": str(documents)}
    config = jaxseq.config("t5:switch", **RUN | sizes | where | {"model.experts": 2, "train.accumulate": 2})
    record = train(config, tmp_path)
    rows = records_of.read(tmp_path)
    assert rows[-1]["loss"] < rows[0]["loss"] and rows[0]["loss"] > rows[0]["nats"]  # the router's losses
    assert record["validation_loss"] > 0
    model, variables, config = load_variables(tmp_path)
    assert model.vocab == 257 + span.SENTINELS
    assert span.task(config).sentinels[[0, 99]].tolist() == [356, 257]
    with pytest.raises(UserError, match="spans a row, and there are 100 sentinels"):
        span.task(jaxseq.config("t5", **where | {"train.length": 4000}))
