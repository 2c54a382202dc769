"""The mixer of infini-attention: its equation, the laws with segments shorter than the sequence, its state, and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from oracles import infini_attention

from jaxseq import testing
from jaxseq.call import Call
from jaxseq.errors import UserError
from jaxseq.layers import rotate
from jaxseq.mixers.infini_attention import InfiniAttention
from jaxseq.testing import compare
from jaxseq.testing.networks import moved

(SUBJECT,) = testing.subjects(InfiniAttention(width=16, layers=2, kv_heads=2, segment=3))


# tests/mixers/test_laws.py has the laws with the default, where no segment is complete.
LAWS = [pytest.param(law, marks=[] if law == "reset" else [pytest.mark.slow]) for law in testing.LAWS["mixer"]]


@pytest.mark.parametrize("law", LAWS)
def test_laws_with_short_segments(law):
    testing.check_law(SUBJECT, law)


def test_equation(x64):
    mixer = InfiniAttention(width=16, layers=2, kv_heads=2, segment=4, dtype=jnp.float64)
    x = jax.random.normal(jax.random.key(1), (2, 15, 16), jnp.float64)
    pos = np.tile(np.arange(15, dtype=np.int32), (2, 1))
    call = Call.of(pos, "chunkwise")
    params = jax.jit(lambda x: mixer.init(jax.random.key(0), x, None, call, mutable="params"))(x)
    params = moved(nn.meta.unbox(params), jax.random.key(2))
    got, state, _ = jax.jit(lambda params: mixer.apply(params, x, None, call))(params)
    p = jax.tree.map(np.asarray, params["params"])
    q, k, v = (np.einsum("btd,dhk->bthk", x, p[name]["kernel"]) for name in "qkv")
    turned = (np.asarray(rotate(x, pos, mixer._frequencies(4))) for x in (q, k))
    y = infini_attention.loop(*turned, v, q, k, p["gate"], 4)
    assert compare.error(got, np.einsum("bthk,hkd->btd", y, p["o"]["kernel"])) < compare.FLOAT64
    assert compare.spec(state) == compare.spec(jax.eval_shape(lambda: mixer.init_state(2, 1 << 40)))


REFUSED = {"window": 8}, {"ring": "int8"}, {"alibi": True}, {"sink": True}, {"cap": 5.0}, {"segment": 0}


@pytest.mark.parametrize("fields", REFUSED, ids=lambda fields: next(iter(fields)))
def test_refused_options(fields):
    with pytest.raises(UserError, match="infini-attention|ring"):
        InfiniAttention(width=16, layers=2, **fields).init_state(1, 8)
