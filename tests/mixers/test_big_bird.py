"""The causal mixer of BigBird: its equation, its blocks, the laws with blocks smaller than the sequence, and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from oracles import attention, block_sparse_attention

from jaxseq import testing
from jaxseq.call import Call
from jaxseq.errors import UserError
from jaxseq.mixers.big_bird import BigBird
from jaxseq.testing import compare
from jaxseq.testing.networks import moved

SMALL = {"kv_heads": 2, "block": 2, "near": 1, "global_blocks": 1, "random_blocks": 1}
(SUBJECT,) = testing.subjects(BigBird(width=16, layers=2, **SMALL))

OTHERS = [pytest.param(law, marks=pytest.mark.slow) for law in testing.LAWS["mixer"] if law not in ("split", "gradient")]


@pytest.mark.parametrize("law", ["split", "gradient", *OTHERS])
def test_laws_with_small_blocks(law):
    testing.check_law(SUBJECT, law)


def test_blocks_by_definition():
    """Near, global and random blocks of each token; random ones are new, and differ between heads, layers and blocks."""
    mixer = BigBird(width=16, layers=2, kv_heads=2, block=3, near=2, global_blocks=2, random_blocks=3)
    drawn = {}
    for layer in range(2):
        index = np.asarray(mixer.choose(jnp.arange(90)[None], layer))[0]
        for t, g in np.ndindex(90, 2):
            own, (near, first, random) = t // 3, np.split(index[t, g], (2, 4))
            assert near.tolist() == [own, max(own - 1, -1)] and first.tolist() == [0, 1]
            free = range(2, own - 1)
            found = random[random >= 0].tolist()
            assert len(set(found)) == len(found) == min(3, len(free)) and set(found) <= set(free)
            assert drawn.setdefault((layer, g, own), found) == found
    assert len({str(drawn[layer, g, own]) for layer in range(2) for g in range(2) for own in range(20, 30)}) > 30


def run(mixer, time: int):
    """(x, params, output) for two documents of this length, one each row."""
    pos = np.tile(np.arange(time, dtype=np.int32), (2, 1))
    x = jax.random.normal(jax.random.key(1), (2, time, mixer.width), jnp.float64)
    boxed = jax.jit(lambda x: mixer.init(jax.random.key(0), x, None, Call.of(pos, "chunkwise")))(x)
    params = moved(nn.meta.unbox(boxed), jax.random.key(2))
    y = jax.jit(lambda params, x: mixer.apply(params, x, None, Call.of(pos, "chunkwise")).y_BTD)(params, x)
    return np.asarray(x), jax.tree.map(np.asarray, params["params"]), y


def projected(x, p):
    return tuple(np.einsum("btd,dhk->bthk", x, p[name]["kernel"]) for name in "qkv")


def test_equation(x64):
    mixer = BigBird(width=16, layers=2, dtype=jnp.float64, rotary=False, **SMALL)
    x, p, got = run(mixer, 21)
    index = np.asarray(mixer.choose(jnp.tile(jnp.arange(21), (2, 1)), 0))
    y = block_sparse_attention.loop(*projected(x, p), index, mixer.block)
    assert compare.error(got, np.einsum("bthk,hkd->btd", y, p["o"]["kernel"])) < compare.FLOAT64


def test_where_every_block_is_seen_it_is_attention(x64):
    mixer = BigBird(width=16, layers=2, dtype=jnp.float64, rotary=False, block=4, near=2, global_blocks=2, random_blocks=2)
    x, p, got = run(mixer, 21)
    y = attention.loop(*projected(x, p))
    assert compare.error(got, np.einsum("bthk,hkd->btd", y, p["o"]["kernel"])) < compare.FLOAT64


REFUSED = {"window": 4}, {"sink": True}, {"cap": 5.0}, {"block": 0}, {"near": 0}, {"random_blocks": -1}


@pytest.mark.parametrize("fields", REFUSED, ids=lambda fields: next(iter(fields)))
def test_refused_options(fields):
    with pytest.raises(UserError, match="big_bird"):
        BigBird(width=16, layers=2, **fields).init_state(1, 8)
