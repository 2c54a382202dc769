"""A recurrent encoder-decoder: random weights against plain loops, and g2p-en's if JAXSEQ_G2P is the path of its npz."""

import os

import jax
import numpy as np
import pytest
from oracles.lstm import sigmoid

from jaxseq import convert
from jaxseq.convert.sources import g2p_en
from jaxseq.testing import compare


def random_checkpoint(width=6, hidden=5):
    rng = np.random.default_rng(0)
    shapes = {"enc_emb": (29, width), "dec_emb": (74, width), "fc_w": (74, hidden), "fc_b": (74,)}
    for name in ("enc", "dec"):
        shapes |= {f"{name}_w_ih": (3 * hidden, width), f"{name}_w_hh": (3 * hidden, hidden)}
        shapes |= {f"{name}_b_ih": (3 * hidden,), f"{name}_b_hh": (3 * hidden,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def states(tensors, name: str, tokens, h):
    """A GRU in torch's layout, one token at a time."""
    for token in tokens:
        r_i, z_i, n_i = np.split(tensors[f"{name}_w_ih"] @ tensors[f"{name}_emb"][token] + tensors[f"{name}_b_ih"], 3)
        r_h, z_h, n_h = np.split(tensors[f"{name}_w_hh"] @ h + tensors[f"{name}_b_hh"], 3)
        r, z = sigmoid(r_i + r_h), sigmoid(z_i + z_h)
        h = (1 - z) * np.tanh(n_i + r * n_h) + z * h
        yield h


def test_logits_are_those_of_plain_loops():
    tensors = random_checkpoint()
    model, params = convert.from_state_dict("g2p_en", g2p_en.infer({k: v.shape for k, v in tensors.items()}), tensors)
    source, tokens = np.array([[3, 7, 9, 2], [5, 2, 0, 0]], np.int32), np.array([[2, 9, 30], [2, 11, 40]], np.int32)
    source_pos = np.array([[0, 1, 2, 3], [0, 1, -1, -1]], np.int32)
    for form in ("recurrent", "parallel"):
        apply = jax.jit(model.apply, static_argnames="form")
        logits, _ = apply({"params": params}, tokens, source=source, source_pos=source_pos, form=form)
        for row, length in enumerate((4, 2)):
            *_, h = states(tensors, "enc", source[row, :length], np.zeros(5))
            wanted = [tensors["fc_w"] @ h + tensors["fc_b"] for h in states(tensors, "dec", tokens[row], h)]
            assert compare.error(logits[row], wanted) < 1e-5


def test_round_trip():
    tensors = random_checkpoint()
    model, params = convert.from_state_dict("g2p_en", g2p_en.infer({k: v.shape for k, v in tensors.items()}), tensors)
    exported = convert.to_state_dict("g2p_en", model, params)
    assert exported.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(exported[name], value, strict=True)


def test_phonemes_are_the_networks():
    assert len(g2p_en.PHONEMES) == 74
    assert [g2p_en.PHONEMES[n] for n in (0, 3, 4, 22, 65, 66, 73)] == ["<pad>", "</s>", "AA0", "B", "UW", "UW0", "ZH"]


@pytest.mark.skipif("JAXSEQ_G2P" not in os.environ, reason="JAXSEQ_G2P names no checkpoint20.npz of g2p-en 2.1.0")
def test_words():
    model, params = convert.from_pretrained(os.environ["JAXSEQ_G2P"], "g2p/en")
    said = g2p_en.phonemes(model, params, ["transformer", "activationist", "recurrence"])
    assert " ".join(said[0]) == "T R AE0 N S F AO1 R M ER0"
    assert said[1] == g2p_en.phonemes(model, params, ["activationist"])[0]  # padding up to a longer word changes nothing
