"""Recurrent mixers against loops from their papers; bidirectional recurrent stacks on packed rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from oracles.lstm import sigmoid

from jaxseq.call import Call
from jaxseq.mixers import rglru
from jaxseq.mixers.mingru import MinGRU
from jaxseq.mixers.minlstm import MinLSTM
from jaxseq.models.rnn import RNN
from jaxseq.testing import compare

POS = np.array([[0, 1, 2, 3, 0, 1, -1], [0, 1, 2, 3, 4, 5, 6]], np.int32)  # two documents and padding; one


def documents():
    """(row, start, end)"""
    return ((0, 0, 4), (0, 4, 6), (1, 0, 7))


def with_random_parameters(mixer):
    """(params moved away from their initial values, inputs, outputs in the recurrent form)"""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 7, mixer.width))
    params = nn.meta.unbox(mixer.init(jax.random.key(0), x, None, Call.of(POS, "recurrent")))["params"]
    params = jax.tree.map(lambda p: np.asarray(p + 0.3 * rng.normal(size=p.shape)), params)
    y = jax.jit(lambda x: mixer.apply({"params": params}, x, None, Call.of(POS)))(x)[0]
    return params, x, y


def check_documents(loop, x, y):
    for row, start, stop in documents():
        assert compare.error(y[row, start:stop], loop(x[row, start:stop])) < 1e-10
    assert not np.asarray(y)[POS < 0].any()


def convolved(params, u):
    """Convolution of one document with W taps; tap 0 is for the token itself."""
    taps = params["conv_kernel"]
    padded = np.concatenate([np.zeros((len(taps) - 1, u.shape[1])), u])
    return params["conv_bias"] + sum(tap * padded[len(taps) - 1 - j :][: len(u)] for j, tap in enumerate(taps))


def test_recurrent_block_of_griffin(x64):
    """Figure 2 and eq. 1 to 4 of De et al. 2024, with the multiplier 1 at the start of each document."""
    params, x, y = with_random_parameters(rglru.RGLRU(width=6, hidden=8, heads=2, dtype=jnp.float64))

    def gate(u, name):
        heads = zip(np.split(u, 2), params[f"{name}_kernel"], params[f"{name}_bias"], strict=True)
        return sigmoid(np.concatenate([part @ w + b for part, w, b in heads]))

    def loop(x):
        linear = lambda name: x @ params[name]["kernel"] + params[name]["bias"]  # noqa: E731
        gelu, h, rows = np.asarray(jax.nn.gelu(linear("y"), approximate=True)), np.zeros(8), []
        for t, u in enumerate(convolved(params, linear("x"))):
            a = np.exp(-8 * gate(u, "a") * np.logaddexp(0, params["Lambda"]))
            h = a * h + (1 if t == 0 else np.sqrt(1 - a**2)) * gate(u, "i") * u
            rows.append((gelu[t] * h) @ params["o"]["kernel"] + params["o"]["bias"])
        return np.stack(rows)

    check_documents(loop, x, y)


def test_decays_of_griffin_start_in_the_ring():
    radius = np.exp(-np.logaddexp(0, rglru.ring(0.9, 0.999)(jax.random.key(0), (4096,), jnp.float32)))
    assert 0.9 <= radius.min() < 0.91 and 0.998 < radius.max() <= 0.9991
    assert abs((radius**2).mean() - (0.9**2 + 0.999**2) / 2) < 0.005  # uniform in area
    slope = jax.grad(rglru.bounded_sqrt)
    assert slope(0.25) == 1 and slope(0.0) == rglru.STEEPEST


@pytest.mark.parametrize("mixer", (MinLSTM, MinGRU))
def test_minimal_recurrent_networks(x64, mixer):
    """§3.1.3 and §3.2.3 of Feng et al. 2024 with g of appendix B."""
    params, x, y = with_random_parameters(mixer(width=4, dtype=jnp.float64))

    def loop(x):
        h, rows = np.zeros(4), []
        for u in convolved(params, x):
            v, b = u @ params["v"]["kernel"], params["forget_bias"]
            v = np.where(v >= 0, v + 0.5, sigmoid(v))
            if mixer is MinGRU:
                z = sigmoid(u @ params["z"]["kernel"] - b)
                h = (1 - z) * h + z * v
            else:
                f, i = sigmoid(u @ params["f"]["kernel"] + b), sigmoid(u @ params["i"]["kernel"])
                h = f / (f + i) * h + i / (f + i) * v
            rows.append(h @ params["o"]["kernel"])
        return np.stack(rows)

    check_documents(loop, x, y)


def test_both_ways_each_document_is_alone(x64):
    model = RNN("gru", inputs=3, hidden=4, layers=2, bidirectional=True, dtype=jnp.float64)
    x = np.random.default_rng(0).normal(size=(2, 7, 3))
    params = model.init(jax.random.key(0), x)["params"]
    apply = jax.jit(lambda x, pos=None: model.apply({"params": params}, x, None, pos)[0])
    y = apply(np.where((POS >= 0)[..., None], x, np.nan), POS)
    check_documents(lambda x: apply(x[None])[0], x, y)


def test_one_way_a_stack_is_a_stream(x64):
    model = RNN("gru", inputs=3, hidden=4, layers=2, dtype=jnp.float64)
    x = np.random.default_rng(0).normal(size=(2, 7, 3))
    params = model.init(jax.random.key(0), x)["params"]
    apply = jax.jit(lambda x, state=None: model.apply({"params": params}, x, state))
    y, state = apply(x)
    first, middle = apply(x[:, :3], model.init_state(2))
    second, last = apply(x[:, 3:], middle)
    assert compare.error(np.concatenate([first, second], axis=1), y) < 1e-12
    assert compare.worst(last, state)[0] < 1e-12
