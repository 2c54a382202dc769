"""S4, S4D, H3 and Hyena layers equal their authors' code in every form and in segments; round trips."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.convert import check_round_trip, imported, oracle

from jaxseq import convert
from jaxseq.call import Call
from jaxseq.mixers.s4 import S4
from jaxseq.ops import dplr_ssm
from jaxseq.testing import compare

FORMS = ("recurrent", "parallel", "chunkwise")
LAYERS = {  # oracle: (source, outputs over the whole input)
    "s4": ("s4/s4", ("conv", "step", "step_linear")),
    "s4diag": ("s4/s4d", ("conv", "step")),
    "s4d_minimal": ("s4/s4d_minimal", ("conv",)),
    "h3_hd1": ("h3/h3", ("conv", "prefill6_then_step", "prefill1_then_step")),
    "hyena_o2": ("safari/hyena", ("y",)),
    "hyena_o3": ("safari/hyena", ("y",)),
}


@functools.cache
def run(name: str, form: str):
    """Outputs for the oracle's input: whole, and in two segments with the state carried over."""
    mixer, params = imported(LAYERS[name][0], name)
    x_BTD = oracle(name)["input"]["x"]
    pos_BT = jnp.broadcast_to(jnp.arange(x_BTD.shape[1]), x_BTD.shape[:2])
    apply = jax.jit(lambda x, state, pos: mixer.apply({"params": params}, x, state, Call.of(pos, form)))
    whole, half = apply(x_BTD, None, pos_BT)[0], x_BTD.shape[1] // 2
    first, state, _ = apply(x_BTD[:, :half], mixer.init_state(len(x_BTD), None), pos_BT[:, :half])
    return whole, jnp.concatenate([first, apply(x_BTD[:, half:], state, pos_BT[:, half:])[0]], axis=1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LAYERS)
def test_layer(name, form):
    for y in run(name, form):
        for output in LAYERS[name][1]:
            assert compare.error(y, oracle(name)["output"][output]) < 1e-5, output


@pytest.mark.parametrize("name", ("hyena_o2", "hyena_o3"))
def test_a_shorter_input_truncates_the_same_filter(name):
    assert compare.error(run(name, "parallel")[0][:, :13], oracle(name)["output"]["y_prefix13"]) < 1e-5
    mixer, params = imported("safari/hyena", name)
    h_OWD = mixer.filter_module().apply({"params": params["filter"]})
    h_WD = np.moveaxis(h_OWD, 0, 1).reshape(mixer.l_max, -1)
    assert compare.error(h_WD[:24], oracle(name)["output"]["filter"]) < 1e-5


@pytest.mark.parametrize("name", LAYERS)
def test_round_trip(name):
    check_round_trip(LAYERS[name][0], name)


def test_s4_with_the_filter_length_inside_c():
    """The authors' layer stores c (I - A^24) and the number 24 after it has run."""
    parts, (_, params) = oracle("s4"), imported("s4/s4", "s4")
    halves = lambda x: np.concatenate([x[..., 0], x[..., 1]], axis=-1)  # noqa: E731
    lam_DM = halves(np.stack([-np.exp(params["A_log"]), params["A_imag"]], axis=-1))
    A_DMN, _ = dplr_ssm.dense(dplr_ssm.discretise(lam_DM, halves(params["P"]), np.exp(params["log_dt"])), 0 * lam_DM)
    power_DMN = np.linalg.matrix_power(np.asarray(A_DMN, np.float64), 24)
    sign_M = np.repeat([1, -1], lam_DM.shape[1] // 2)  # Re(c x) is conj(c) . x in real parts
    c_DM = sign_M * halves(params["C"])
    c_DM = sign_M * (c_DM - np.einsum("dm,dmn->dn", c_DM, power_DMN))
    stored = np.stack(np.split(c_DM.astype(np.float32), 2, axis=-1), axis=-1)[None]
    tensors = parts["param"] | {"layer.kernel.C": stored, "layer.kernel.l_kernel": np.int64(24)}
    mixer, params = convert.from_state_dict("s4/s4", parts["config"] | {"l_kernel": 24}, tensors)
    assert mixer == S4(width=8, state_size=8, kernel_length=24)
    x_BTD = parts["input"]["x"]
    pos_BT = np.broadcast_to(np.arange(x_BTD.shape[1]), x_BTD.shape[:2])
    y_BTD = jax.jit(lambda params: mixer.apply({"params": params}, x_BTD, None, Call.of(pos_BT)))(params)[0]
    assert compare.error(y_BTD, parts["output"]["conv"]) < 1e-5
    assert convert.to_state_dict("s4/s4", mixer, params)["layer.kernel.l_kernel"] == 24
