"""The mixer of Native Sparse Attention: its equation, the laws with blocks smaller than the sequence, and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from oracles import attention, block_sparse_attention, compressed_attention

from jaxseq import testing
from jaxseq.call import Call
from jaxseq.errors import UserError
from jaxseq.mixers.native_sparse_attention import NativeSparseAttention
from jaxseq.testing import compare
from jaxseq.testing.networks import moved

SMALL = {"kv_heads": 2, "block": 2, "selected": 4, "window": 3}
(SUBJECT,) = testing.subjects(NativeSparseAttention(width=16, layers=2, **SMALL))


# tests/mixers/test_laws.py has the law `split` with the default blocks.
LAWS = [pytest.param(law, marks=[pytest.mark.slow] if law == "split" else []) for law in testing.LAWS["mixer"]]


@pytest.mark.parametrize("law", LAWS)
def test_laws_with_small_blocks(law):
    testing.check_law(SUBJECT, law)


def choice(q, k, block, count):
    """Eq. 8 to 10 with the forced blocks of the docstring, for one document."""
    batch, time, heads, size = q.shape
    groups = heads // k.shape[2]
    index = np.full((batch, time, k.shape[2], count), -1)
    for b, t, g in np.ndindex(batch, time, k.shape[2]):
        own, p = t // block, {}
        for h in range(g * groups, (g + 1) * groups):
            means = [k[b, i * block : (i + 1) * block, g].mean(axis=0) for i in range((t + 1) // block)]
            weights = np.exp([q[b, t, h] @ mean / np.sqrt(size) for mean in means])
            for i, weight in enumerate(weights):
                p[i] = p.get(i, 0) + weight / weights.sum()
        p |= {0: np.inf, max(own - 1, 0): np.inf, own: np.inf}
        best = sorted(p, key=lambda i: -p[i])[:count]
        index[b, t, g, : len(best)] = best
    return index


def test_equation(x64):
    time, width = 21, 16
    mixer = NativeSparseAttention(width=width, layers=2, dtype=jnp.float64, rotary=False, **SMALL)
    pos = np.tile(np.arange(time, dtype=np.int32), (2, 1))
    x = jax.random.normal(jax.random.key(1), (2, time, width), jnp.float64)
    boxed = jax.jit(lambda x: mixer.init(jax.random.key(0), x, None, Call.of(pos, "chunkwise")))(x)
    params = moved(nn.meta.unbox(boxed), jax.random.key(2))
    got = jax.jit(lambda params, x: mixer.apply(params, x, None, Call.of(pos, "chunkwise")).y_BTD)(params, x)

    p = jax.tree.map(np.asarray, params["params"])
    q, k, v, gates = (np.einsum("btd,dhk->bthk", x, p[name]["kernel"]) for name in ("q", "k", "v", "gates"))
    branches = (
        compressed_attention.loop(q, k, v, mixer.block),
        block_sparse_attention.loop(q, k, v, choice(q, k, mixer.block, mixer.selected), mixer.block),
        attention.loop(q, k, v, mixer.window),
    )
    y = sum(y / (1 + np.exp(-gates[..., i, None])) for i, y in enumerate(branches))
    assert compare.error(got, np.einsum("bthk,hkd->btd", y, p["o"]["kernel"])) < compare.FLOAT64


REFUSED = {"alibi": True}, {"sink": True}, {"cap": 5.0}, {"window": None}, {"block": 0}, {"selected": 0}


@pytest.mark.parametrize("fields", REFUSED, ids=lambda fields: next(iter(fields)))
def test_refused_options(fields):
    with pytest.raises(UserError, match="native sparse attention"):
        NativeSparseAttention(width=16, layers=2, **fields).init_state(1, 8)
