"""Sentence embeddings: of a random encoder, and of published weights if JAXSEQ_MINILM is their path."""

import os
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.train_tiny import WORDS

import jaxseq
from jaxseq.convert import from_pretrained
from jaxseq.data.tokenizers import ByteTokenizer, JsonTokenizer
from jaxseq.errors import UserError
from jaxseq.evaluation import sentences

SMALL = {"model.width": 32, "model.heads": 2, "model.hidden": 48, "model.layers": 1, "model.max_positions": 64}


def test_an_embedding_is_the_mean_of_a_sentence_in_any_company():
    model, tokenizer = jaxseq.build(jaxseq.config("bert", **SMALL)), ByteTokenizer()
    params = model.init(jax.random.key(0), *model.example())["params"]
    found = sentences.embed(model, params, tokenizer, [*WORDS, ""], batch=5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    for i in (0, 3):
        ids = np.array([[256, *tokenizer.encode(WORDS[i]), 256]])
        mean = np.asarray(jax.jit(model.apply)({"params": params}, ids).hidden)[0].mean(axis=0)
        np.testing.assert_allclose(found[i], mean / np.linalg.norm(mean), atol=1e-5)
    with pytest.raises(UserError, match="length=65"):
        sentences.embed(model, params, tokenizer, WORDS, length=65)
    with pytest.raises(UserError, match="list of texts"):
        sentences.embed(model, params, tokenizer, "one")


RELATED = [
    ("A man is eating food.", "A man is eating a piece of bread."),
    ("How do I reset my password?", "I forgot my login and need a new one."),
    ("The stock market fell sharply today.", "Shares lost much of their value this morning."),
    ("The cat sleeps on the sofa.", "A kitten is napping on the couch."),
]


@pytest.mark.skipif("JAXSEQ_MINILM" not in os.environ, reason="JAXSEQ_MINILM is not a folder or wheel of all-MiniLM-L6-v2")
def test_related_sentences_are_nearer_than_unrelated_ones(tmp_path):
    """With all-MiniLM-L6-v2 the smallest cosine of a related pair exceeds the largest of all others."""
    path = Path(os.environ["JAXSEQ_MINILM"])
    if path.is_file():
        with zipfile.ZipFile(path) as wheel:
            wheel.extractall(tmp_path, [name for name in wheel.namelist() if "/model/" in name])
        path = tmp_path
    folder = next(path.rglob("model.safetensors")).parent
    model, params = from_pretrained(folder)
    tokenizer = JsonTokenizer(folder / "tokenizer.json")
    found = sentences.embed(model, params, tokenizer, [text for pair in RELATED for text in pair])
    cosine = found @ found.T
    pairs = np.arange(len(found)) // 2
    related, others = (cosine[np.triu(mask, 1)] for mask in (pairs[:, None] == pairs, pairs[:, None] != pairs))
    print("related", related, "others at most", others.max())
    assert related.min() > others.max() + 0.1
    assert related[0] == pytest.approx(0.7553, abs=1e-3)  # the value that the model's authors publish for this pair
