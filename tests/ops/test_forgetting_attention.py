"""Forgetting attention against flash-linear-attention and against attention, and the memory of its chunkwise form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.places import TESTS

from jaxseq.ops import attention, forgetting_attention
from jaxseq.testing import compare

FORMS = ("recurrent", "parallel", "chunkwise")


def chunks(form: str) -> dict[str, int]:
    return {"chunk": 5} if form == "chunkwise" else {}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["forgetting_attn", "forgetting_attn_window"])
def test_flash_linear_attention(name, form):
    """Grouped keys, a window and a scale."""
    with np.load(TESTS / "oracles" / "forgetting_attention.npz") as arrays:
        data = {key.partition(f"{name}/")[2]: arrays[key] for key in arrays if f"/{name}/" in key}
    options = {"window": int(data["window_size"]), "scale": float(data["scale"])} if "scale" in data else {}
    y, _ = forgetting_attention.FORMS[form](*(data[x] for x in "qkvg"), **options, **chunks(form))
    assert compare.error(y, data["y"]) < 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_without_decay_it_is_attention(form, x64):
    (*qkv, log_f), _, options, state = forgetting_attention.example(jax.random.key(0), 2, 9, jnp.float64)
    state = state._replace(log_decay_BHS=0 * state.log_decay_BHS)
    got = forgetting_attention.FORMS[form](*qkv, 0 * log_f, state=state, **options, **chunks(form))
    wanted = attention.parallel(*qkv, state=state.ring, **options)
    assert compare.worst((got[0], got[1].ring), wanted)[0] < compare.FLOAT64
    assert not got[1].log_decay_BHS.any()


def test_the_memory_of_training_is_linear():
    """Temporaries of the gradients of the chunkwise form: if scores or sums of all pairs were stored, they would quadruple."""

    def temporaries(time):
        xs = [jnp.zeros((1, time, 2, 4))] * 3 + [jnp.zeros((1, time, 2))]
        gradients = jax.grad(lambda xs: jnp.sum(forgetting_attention.chunkwise(*xs, chunk=32)[0]))
        return jax.jit(gradients).lower(xs).compile().memory_analysis().temp_size_in_bytes

    small, large = temporaries(512), temporaries(1024)
    assert large < 2.2 * small
