"""Objectives beside the next token: what a row becomes, and whole runs in the one loop."""

import numpy as np
import pytest
from train_tiny import write_documents

import jaxseq
from jaxseq.errors import UserError
from jaxseq.train import load_variables, train
from jaxseq.train import metrics as records_of
from jaxseq.train.objectives import masked

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
    hidden, chosen = masked.corrupt(tokens, free, 0.15, 256, 200, random)
    assert chosen.sum() == round(0.15 * free.sum()) and not chosen[~free].any()
    np.testing.assert_array_equal(hidden[~chosen], tokens[~chosen])
    share = np.mean(hidden[chosen] == 256), np.mean(hidden[chosen] == tokens[chosen])
    np.testing.assert_allclose(share, (0.8, 0.1), atol=0.03)
    assert hidden[chosen & (hidden != 256)].max() < 200
    nothing = masked.corrupt(tokens[:3], np.zeros(3, bool), 0.15, 256, 200, random)
    assert not nothing[1].any()


def test_what_is_hidden_depends_on_the_row_alone(documents):
    """Not on the size of the batch, on processes, or on where a run was resumed."""
    task = masked.task(small("bert", documents))
    whole = next(task.batches(0, 1))["tokens"]
    halves = [next(task.batches(process, 2))["tokens"] for process in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves), whole)
    first = task.batches(0, 1)
    next(first)
    second = task.batches(0, 1)
    second.restore(first.state())
    np.testing.assert_array_equal(next(first)["weights"], next(second)["weights"])


def test_a_run_that_fills_in_masked_bytes(documents, tmp_path):
    config = small("bert", documents, **{"train.steps": 6})
    record = train(config, tmp_path)
    rows = records_of.read(tmp_path)
    assert rows[-1]["loss"] < rows[0]["loss"] and "bits_per_byte" not in rows[0]
    assert record["validation_loss"] == pytest.approx(record["validation_loss"])
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
    with pytest.raises(UserError, match="learned 16 positions"):
        train(small("bert", documents, **{"model.max_positions": 16}), tmp_path)
