"""Every op in every form against a plain loop from its paper, and against outputs of other implementations."""

import functools
import importlib

import jax
import numpy as np
import pytest
from helpers.laws import cells, of_op
from helpers.places import TESTS

from jaxseq import registry
from jaxseq.ops import retention, selective_scan
from jaxseq.testing import compare

FORMS = ("recurrent", "parallel", "chunkwise")


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(TESTS / "oracles" / f"{name}.npz") as arrays:
        return {key: arrays[key] for key in arrays if arrays[key].dtype != object}


@pytest.mark.parametrize("name, form", cells("ops", registry.names("ops"), FORMS))
def test_plain_loop(name, form):
    loop = importlib.import_module(f"oracles.{name}").loop
    for subject in of_op(name):
        case = subject.case(np.float64)
        y, _ = subject.run(form, np.float64, case.xs, case.weights, None, None)
        options = subject.options_of(subject.op.FORMS["recurrent"], subject.options)
        options.pop("chunk", None)  # options for the computation, not for the result
        assert compare.error(y, loop(*case.xs, **case.weights, **options)) < compare.FLOAT64


def run(op, form: str, *xs, **weights):
    options = {"chunk": 8} if form == "chunkwise" else {}
    return jax.jit(functools.partial(op.FORMS[form], **options))(*xs, **weights)


@pytest.mark.parametrize("form", FORMS)
def test_retention_of_flash_linear_attention(form):
    data = load("retention")
    q, k, v = (np.moveaxis(data[f"input/{name}"], 1, 2) for name in "qkv")  # from [B, H, T, K]
    log_a = np.broadcast_to(np.log1p(-(2.0 ** (-5 - np.arange(q.shape[2])))), q.shape[:3]).astype(np.float32)
    y, _ = run(retention, form, q * np.float32(q.shape[3] ** -0.5), k, v, log_a)
    assert compare.error(np.moveaxis(y, 2, 1), data["output/retention"]) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_selective_scan_of_mamba_ssm(form):
    data = load("models/mamba")
    u, delta, b, c, z = (np.moveaxis(data[f"input/op_{name}"], 1, 2) for name in ("u", "delta", "B", "C", "z"))
    dt = np.logaddexp(0, delta + data["input/op_delta_bias"])  # softplus
    y, state = run(selective_scan, form, u, dt, b, c, a_DN=data["input/op_A"], d_D=data["input/op_D"])
    y_gated = np.moveaxis(y * (z / (1 + np.exp(-z))), 2, 1)
    assert compare.error(y_gated, data["output/op_y"]) < 1e-5
    assert compare.error(state.h_BDN, data["output/op_last_state"]) < 1e-5
