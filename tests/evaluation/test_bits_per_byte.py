"""Bits per byte of whole documents: independent of batching, and equal to one pass over the document."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.compiler import compiled
from helpers.train_tiny import tiny, write_documents
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxseq
from jaxseq import data
from jaxseq.evaluation import evaluate
from jaxseq.evaluation.bits_per_byte import token_nats

WHOLE = {"eval.documents": 0, "eval.context": 0, "data.validation_every": 4}


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    config = tiny(write_documents(tmp_path_factory.mktemp("documents")), **WHOLE)
    model = jaxseq.build(config)
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    return config, model, params, data.corpus(config.data, data.tokenizer(config.data))


def scored(setting, mesh=None, **overrides):
    config, model, params, corpus = setting
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict(overrides)
    return evaluate(model, params, config, corpus, mesh=mesh)


def test_a_document_scores_the_same_in_any_company(setting):
    first = scored(setting)
    other = scored(setting, **{"eval.batch": 3, "eval.length": 50})
    assert [row["id"] for row in first["documents"]] == [row["id"] for row in other["documents"]]
    nats = [[row["nats"] for row in result["documents"]] for result in (first, other)]
    np.testing.assert_allclose(*nats, rtol=2e-5)
    assert scored(setting) == first


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in training"])
def test_a_program_is_compiled_once(setting, inside, caplog):
    """For parameters placed on a mesh, like those of a checkpoint."""
    config, model, params, corpus = setting
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))
    placed = config, model, jax.device_put(params, NamedSharding(mesh, PartitionSpec())), corpus
    one = {"eval.documents": 1, "eval.length": 16}
    assert compiled(lambda: scored(placed, mesh if inside else None, **one), caplog)["score_piece"] == 1


def test_a_document_scores_what_one_pass_over_it_gives(setting):
    _, model, params, corpus = setting
    result = scored(setting)
    score = jax.jit(lambda tokens: model.apply({"params": params}, tokens)[0])
    for row, (name, ids, n_bytes) in zip(result["documents"], corpus.documents("validation"), strict=True):
        padded = np.pad(ids, (0, 1024 - len(ids)))  # causal: later tokens have no effect
        nats, _ = token_nats(score(padded[None])[:, : len(ids)], jnp.asarray(np.append(ids[1:], ids[0]))[None])
        assert (row["id"], row["bytes"], row["tokens"]) == (name, n_bytes, len(ids))
        np.testing.assert_allclose(row["nats"], nats.sum(), rtol=2e-5)


def test_a_state_that_grows_is_emptied_after_the_context(setting):
    """With a context of one segment, the default for full attention here, no state is carried; with a context for the whole
    document the result is exact."""
    scratch = scored(setting, **{"eval.carry_state": False})
    short, long = (scored(setting, **{"eval.context": context}) for context in (None, 4096))
    nats = [[row["nats"] for row in result["documents"]] for result in (scratch, short, long, scored(setting))]
    np.testing.assert_allclose(nats[0], nats[1], rtol=2e-5)
    np.testing.assert_allclose(nats[2], nats[3], rtol=2e-5)
    assert np.mean(np.asarray(nats[1]) != nats[2]) > 0.5


def test_totals_are_sums_over_the_documents(setting):
    result = scored(setting)
    nats, n_bytes, tokens = (sum(row[key] for row in result["documents"]) for key in ("nats", "bytes", "tokens"))
    assert math.isclose(result["bits_per_byte"], nats / math.log(2) / n_bytes, rel_tol=1e-12)
    assert math.isclose(result["perplexity"], math.exp(nats / tokens), rel_tol=1e-12)
    assert (result["bytes"], result["tokens"]) == (n_bytes, tokens)


def test_without_carried_state_each_piece_starts_from_nothing(setting):
    """Then each segment is scored as a document of its own."""
    _, model, params, corpus = setting
    result = scored(setting, **{"eval.carry_state": False})
    assert result["bits_per_byte"] != scored(setting)["bits_per_byte"]
    score = jax.jit(lambda tokens: model.apply({"params": params}, tokens)[0])
    _, ids, _ = next(corpus.documents("validation"))
    targets, total = np.append(ids[1:], ids[0]), 0.0
    for start in range(0, len(ids), 64):
        piece, wanted = ids[start : start + 64], targets[start : start + 64]
        logits = score(np.pad(piece, (0, 64 - len(piece)))[None])[:, : len(piece)]
        total += float(token_nats(logits, jnp.asarray(wanted)[None])[0].sum())
    np.testing.assert_allclose(result["documents"][0]["nats"], total, rtol=2e-5)
