"""The next-token loss in blocks of tokens: the same sums and gradients, and never all logits at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseq
from jaxseq.testing import compare
from jaxseq.train.objectives import next_token

ROWS, TIME, VOCAB = 2, 24, 2048


@functools.cache
def made(penalty: float):
    sizes = {"model.width": 16, "model.stack": "1*(attention swiglu)", "model.vocab": VOCAB}
    config = jaxseq.config("transformer", **sizes, **{"model.logit_penalty": penalty})
    model = jaxseq.build(config)
    variables = jax.jit(model.init)(jax.random.key(0), *model.example())
    random = np.random.default_rng(0)
    tokens = random.integers(0, VOCAB, (2, ROWS, TIME)).astype(np.int32)
    weights = random.random((ROWS, TIME)).astype(np.float32) * (np.arange(TIME) < TIME - 3)
    pos = np.broadcast_to(np.arange(TIME, dtype=np.int32), (ROWS, TIME))
    return model, variables, {"tokens": tokens[0], "targets": tokens[1], "pos": pos, "weights": weights}


def program(penalty: float):
    """Compiled ((loss, sums), gradients) with the current next_token.BLOCK."""
    model, variables, batch = made(penalty)

    def total(variables):
        return next_token.loss(model, variables, batch, jax.random.key(0), form="parallel", train=True)[:2]

    return jax.jit(jax.value_and_grad(total, has_aux=True)).lower(variables).compile()


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_blocks_change_no_sum_and_no_gradient(penalty, monkeypatch):
    variables = made(penalty)[1]
    wanted = program(penalty)(variables)
    monkeypatch.setattr(next_token, "BLOCK", ROWS * VOCAB * 7)  # 6 of 24 tokens: a divisor
    got = program(penalty)(variables)
    assert next_token._block(ROWS, TIME, VOCAB) == 6
    assert compare.worst(got, wanted)[0] < 1e-5


def test_the_logits_are_never_held_together(monkeypatch):
    whole = program(0.0).memory_analysis().temp_size_in_bytes
    logits = ROWS * TIME * VOCAB * 4
    monkeypatch.setattr(next_token, "BLOCK", ROWS * VOCAB)
    blocked = program(0.0).memory_analysis().temp_size_in_bytes
    assert whole > logits > 2 * blocked - 4 * 2 * VOCAB * 16 * 4  # the table, its gradient and its copies are held in both


def test_a_block_is_what_a_device_holds():
    assert next_token._block(8, 512, 257) == 512
    assert next_token._block(8, 2048, 50_304) == 64 and 64 * 8 * 50_304 <= next_token.BLOCK < 128 * 8 * 50_304
    assert next_token._block(4096, 7, 1 << 20) == 1


def test_the_argmax_and_penalty_are_those_of_the_model():
    model, variables, batch = made(0.1)
    (_, sums), _ = program(0.1)(variables)
    (logits, _), losses = model.apply(variables, batch["tokens"], pos=batch["pos"], form="parallel", mutable=["losses"])
    right = jnp.sum((jnp.argmax(logits, -1) == batch["targets"]) * batch["weights"])
    assert float(sums["accuracy"]) == pytest.approx(float(right))
    penalty = jax.tree.leaves(losses)[0].sum()
    (loss, sums), _ = program(0.1)(variables)
    assert float(loss) == pytest.approx(float(sums["nats"] + penalty * sums["tokens"]), rel=1e-5)
