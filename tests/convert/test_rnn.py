"""Recurrent stacks equal torch.nn's and the sru package's; round trips."""

import jax
import numpy as np
import pytest
from helpers.convert import check_round_trip, imported, oracle

from jaxseq.testing import compare

SOURCES = {"lstm": "torch/lstm", "lstm_bi": "torch/lstm", "gru": "torch/gru", "sru": "sru"}
FORMS = ("recurrent", "parallel", "chunkwise")


def run(name: str, form: str):
    """(y, state, expected outputs), batch first."""
    (model, params), parts = imported(SOURCES[name], name), oracle(name)
    turn = (lambda x: np.moveaxis(x, 0, 1)) if name == "sru" else (lambda x: x)  # theirs are time-major
    y, state = jax.jit(model.apply, static_argnames="form")({"params": params}, turn(parts["input"]["x"]), form=form)
    return y, state, {key: turn(value) if key in ("y", "step") else value for key, value in parts["output"].items()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SOURCES)
def test_outputs(name, form):
    y, state, wanted = run(name, form)
    for key in wanted.keys() & {"y", "step"}:  # theirs, for the whole sequence and token by token
        assert compare.error(y, wanted[key]) < 1e-5, key
    flat = [s for layer in state for s in layer]  # ordered by layer, then by direction
    leaves = {"h_n": "h_BHK", "c_n": "c_BHK", "c": "c_BD"}
    for key, leaf in leaves.items():
        if key in wanted:
            got = np.stack([np.reshape(getattr(s, leaf), wanted[key].shape[1:]) for s in flat])
            assert compare.error(got, wanted[key]) < 1e-5, key


@pytest.mark.parametrize("name", SOURCES)
def test_round_trip(name):
    check_round_trip(SOURCES[name], name)


@pytest.mark.parametrize("name", ("lstm_bi", "gru", "sru"))
def test_gradients_against_finite_differences(x64, name):
    """With respect to parameters and inputs, in a random direction; for Newton's adjoint and for the scan."""
    (model, params), rng = imported(SOURCES[name], name), np.random.default_rng(0)
    model = model.clone(dtype=np.float64)
    x = rng.normal(size=(2, 3, model.inputs))
    point = jax.tree.map(lambda x: np.asarray(x, np.float64), params), x
    direction = jax.tree_util.tree_map_with_path(
        lambda path, p: rng.normal(size=p.shape) * ("scale" not in jax.tree_util.keystr(path)), point
    )  # SRU's scale is a constant

    def loss(point, form):
        return (model.apply({"params": point[0]}, point[1], form=form)[0] ** 2).sum()

    def moved(step):
        return loss(jax.tree.map(lambda p, d: p + step * d, point, direction), "recurrent")

    slope = jax.jit(lambda: (moved(1e-6) - moved(-1e-6)) / 2e-6)()
    for form in ("recurrent", "parallel"):
        gradient = jax.jit(jax.grad(loss), static_argnames="form")(point, form=form)
        found = sum(np.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
        assert compare.error(found, slope) < 1e-6, form
