"""Gated linear attention and the delta rules against the naive operators of flash-linear-attention, and the stages of a chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.places import TESTS

from jaxseq import registry
from jaxseq.ops import _decay, _delta
from jaxseq.testing import compare

ARGUMENTS = {
    "gla": ("q", "k", "v", "gk"), "delta_rule": ("q", "k", "v", "beta"), "gated_delta_rule": ("q", "k", "v", "g", "beta"),
    "kda": ("q", "k", "v", "g", "beta"), "gdn2": ("q", "k", "v", "g", "b", "w"),
}  # fmt: skip
FORMS = ("recurrent", "parallel", "chunkwise")


@pytest.fixture(scope="module")
def data():
    with np.load(TESTS / "oracles" / "delta.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_flash_linear_attention(data, name, form):
    """Theirs divides queries by sqrt(K). Their plain delta rule, with heads first, is ours with log_a = 0."""
    ungated = name == "delta_rule"
    xs = [data[f"input/{name}/{argument}"] for argument in ARGUMENTS[name]]
    xs = [np.moveaxis(x, 1, 2) for x in xs] if ungated else xs
    xs[0] = xs[0] * np.float32(xs[0].shape[3] ** -0.5)
    if ungated:
        xs.insert(3, np.zeros_like(xs[3]))
    op = registry.load("ops", "gated_delta_rule" if ungated else name)
    start = op.GLAState if name == "gla" else op.DeltaState
    options = {"chunk": 5} if form == "chunkwise" else {}
    for suffix, state in (("", None), ("_from_state", start(jnp.asarray(data[f"input/{name}/initial_state"])))):
        y, state = op.FORMS[form](*xs, state=state, **options)
        y = np.moveaxis(y, 1, 2) if ungated else y
        assert compare.error(y, data[f"output/{name}/y{suffix}"]) < 1e-5
        assert compare.error(state.S_BHKV, data[f"output/{name}/final_state{suffix}"]) < 1e-5


@pytest.mark.parametrize("channels", [(), (3,)], ids=["a head", "a channel"])
def test_stages_of_a_chunk(x64, channels):
    """Each stage against its definition, with every decay as a product over its tokens."""
    batch, time, heads, size, width = 2, 21, 2, 3, 4
    keys = jax.random.split(jax.random.key(0), 6)
    q, k, e = (jax.random.normal(key, (batch, time, heads, size)) for key in keys[:3])
    v, S = jax.random.normal(keys[3], (batch, time, heads, width)), jax.random.normal(keys[4], (batch, heads, size, width))
    log_w = -jax.random.exponential(keys[5], (batch, time, heads, *channels))
    pos = jnp.ones((batch, time), int)
    w = np.broadcast_to(np.exp(log_w).reshape(batch, time, heads, -1), q.shape)
    decay = np.zeros((batch, heads, time, time, size))  # after s up to and including t
    for t in range(time):
        for s in range(t + 1):
            decay[:, :, t, s] = np.prod(w[:, s + 1 : t + 1], axis=1)
    upto = np.cumprod(w, axis=1)

    decays = (_decay.decays if channels else _decay.head_decays)(log_w, pos, v.dtype)
    lower = jnp.tril(jnp.ones((batch, time, time), bool))
    scores = np.einsum("bthk,bshk,bhtsk->bhts", q, k, decay)
    assert compare.error(_decay.products(q, k, decays, lower), scores) < compare.FLOAT64
    assert compare.error(jnp.broadcast_to(decays.upto_BTHK, upto.shape), upto) < compare.FLOAT64

    A = -np.einsum("bthk,bshk,bhtsk->bhts", e, k, np.tril(np.ones((time, time)), -1)[..., None] * decay)
    inverse = np.linalg.inv(np.eye(time) - A)
    chunk = _delta.solved(q, k, v, e, log_w, pos)
    own = np.einsum("bhts,bshv->bthv", inverse, v)
    from_state = np.einsum("bhts,bshk->bthk", inverse, -e * upto)
    z = own + np.einsum("bthk,bhkv->bthv", from_state, S)
    behind = upto[:, -1][..., None] * S + np.einsum("bthk,bhtk,bthv->bhkv", k, decay[:, :, -1], z)
    y = np.einsum("bhts,bshv->bthv", scores, z) + np.einsum("bthk,bhkv->bthv", q * upto, S)
    for got, wanted in (
        (_delta.unit_triangular_inverse(jnp.asarray(A)), inverse), (chunk.moves.own_BTHV, own), (chunk.scores_BHTS, scores),
        (chunk.moves.from_state_BTHK, from_state), (_delta.after(chunk.moves, S), behind), (_delta.outputs(chunk, S), y),
    ):  # fmt: skip
        assert compare.error(got, wanted) < compare.FLOAT64
