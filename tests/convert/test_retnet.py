"""RetNet equals torchscale's; round trip; torchscale's two normalisations of the scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.convert import check_logits, check_round_trip, imported, oracle

from jaxseq import convert
from jaxseq.call import Call
from jaxseq.compat import enable_x64
from jaxseq.errors import UserError
from jaxseq.mixers.retention import Retention
from jaxseq.testing import compare

FORMS = ("recurrent", "parallel", "chunkwise")


@pytest.mark.parametrize("form", FORMS)
def test_logits(form):
    """Their chunkwise form has other factors before the norm and differs from their parallel form by 3e-5."""
    check_logits("torchscale/retnet", "retnet", "tokens", form, ("parallel", "recurrent"))
    check_logits("torchscale/retnet", "retnet", "tokens", form, ("chunkwise",), allowed=1e-4)


def test_round_trip():
    check_round_trip("torchscale/retnet", "retnet")


def test_what_is_not_read():
    theirs = oracle("retnet")["config"]
    for change, name in (({"moe_freq": 2}, "moe_freq"), ({"deepnorm": True}, "deepnorm"), ({"activation_fn": "x"}, "'x'")):
        with pytest.raises(UserError, match=name):
            convert.from_state_dict("torchscale/retnet", theirs | change, {})
    plain = imported("torchscale/retnet", "retnet")[0]
    assert convert.describe("torchscale/retnet", plain)["decoder_value_embed_dim"] == 64


def loop(mixer, params, x):
    """Eq. 5 with the normalisations of §2.2, one row of scores at a time, before the norm of the heads."""
    heads, size = mixer.heads, mixer.width // mixer.heads
    q, k, v = (np.einsum("td,dhk->thk", x, params[name]["kernel"]) for name in "qkv")
    angle = 10000.0 ** -np.linspace(0, 1, size // 2)
    turn = lambda z, t: (z[::2] + 1j * z[1::2]) * np.exp(1j * t * angle)  # noqa: E731
    y = np.zeros(v.shape)
    for n, h in np.ndindex(len(x), heads):
        decay = (1 - 2.0 ** (-5 - h)) ** (n - np.arange(n + 1.0))
        scores = [np.real(turn(q[n, h], n) @ np.conj(turn(k[m, h], m))) / size**0.5 for m in range(n + 1)]
        row = np.array(scores) * decay / np.sqrt(decay.sum())
        y[n, h] = row / max(abs(row.sum()), 1) @ v[: n + 1, h]
    return y


@pytest.mark.parametrize("form", FORMS)
def test_scaling_is_the_papers(form):
    """With an eps so large that the factors do not cancel in the norm."""
    mixer = Retention(width=8, heads=2, eps=3.0, torchscale_scaling=True, dtype=jnp.float64)
    rng, shapes = np.random.default_rng(0), {"q": (8, 2, 4), "k": (8, 2, 4), "v": (8, 2, 8), "g": (8, 2, 8), "o": (2, 8, 8)}
    params = {name: {"kernel": rng.normal(size=shape)} for name, shape in shapes.items()}
    x, pos = rng.normal(size=(1, 9, 8)), np.arange(9)[None]
    with enable_x64(True):
        apply = jax.jit(lambda x, state, pos: mixer.apply({"params": params}, x, state, Call.of(pos, form)))
        first, state, _ = apply(x[:, :4], None, pos[:, :4])
        second = apply(x[:, 4:], state, pos[:, 4:])[0]
    y = loop(mixer, params, np.asarray(x[0]))
    y /= np.sqrt((y**2).mean(axis=-1, keepdims=True) + mixer.eps)
    gate = np.einsum("td,dhv->thv", x[0], params["g"]["kernel"])
    wanted = np.einsum("thv,hvd->td", gate / (1 + np.exp(-gate)) * y, params["o"]["kernel"])
    assert compare.error(np.concatenate([first, second], axis=1)[0], wanted) < compare.FLOAT64
