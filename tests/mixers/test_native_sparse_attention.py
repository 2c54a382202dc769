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
from jaxseq.ops.compressed_attention import Perceptron
from jaxseq.testing import compare
from jaxseq.testing.networks import moved

SMALL = {"kv_heads": 2, "block": 2, "selected": 4, "window": 3}
PAPER = {"block": 4, "compressed_block": 2, "stride": 1, "learned": True, "hidden": 3, "separate": True}
SUBJECTS = {"means": SMALL, "paper": SMALL | PAPER}
(SUBJECT,) = testing.subjects(NativeSparseAttention(width=16, layers=2, **SMALL))


# tests/mixers/test_laws.py has the law `split` with the default blocks, and all laws with the options of the paper.
LAWS = [pytest.param(law, marks=[pytest.mark.slow] if law == "split" else []) for law in testing.LAWS["mixer"]]


@pytest.mark.parametrize("law", LAWS)
def test_laws_with_small_blocks(law):
    testing.check_law(SUBJECT, law)


def choice(q, k, mixer, compress):
    """Eq. 8 to 10 with the forced blocks of the docstring, for one document."""
    batch, time, heads, size = q.shape
    groups, block, stride = heads // k.shape[2], *mixer._compressed()
    index = np.full((batch, time, k.shape[2], mixer.selected), -1)
    for b, t, g in np.ndindex(batch, time, k.shape[2]):
        own, scores = t // mixer.block, np.zeros(t + 1)
        for h in range(g * groups, (g + 1) * groups):
            keys = [compress(k[b, part, g]) for part in compressed_attention.blocks(t, block, stride)]
            weights = np.exp([q[b, t, h] @ key / np.sqrt(size) for key in keys])
            scores[: len(keys)] += weights / weights.sum()
        p = {}
        for j in range(own):
            shifts = np.add.outer(np.arange(mixer.block // stride), np.arange(block // stride)).ravel()
            p[j] = sum(scores[i] for i in (j + 1) * mixer.block // stride - 1 - shifts if i >= 0)
        p |= {0: np.inf, max(own - 1, 0): np.inf, own: np.inf}
        best = sorted(p, key=lambda i: -p[i])[: mixer.selected]
        index[b, t, g, : len(best)] = best
    return index


@pytest.mark.parametrize("name", SUBJECTS)
def test_equation(name, x64):
    time, width = 25, 16
    mixer = NativeSparseAttention(width=width, layers=2, dtype=jnp.float64, rotary=False, **SUBJECTS[name])
    pos = np.tile(np.arange(time, dtype=np.int32), (2, 1))
    x = jax.random.normal(jax.random.key(1), (2, time, width), jnp.float64)
    boxed = jax.jit(lambda x: mixer.init(jax.random.key(0), x, None, Call.of(pos, "chunkwise"), mutable="params"))(x)
    params = moved(nn.meta.unbox(boxed), jax.random.key(2))
    got = jax.jit(lambda params, x: mixer.apply(params, x, None, Call.of(pos, "chunkwise")).y_BTD)(params, x)

    p = jax.tree.map(np.asarray, params["params"])
    project = lambda name: np.einsum("btd,dhk->bthk", x, p[name]["kernel"])  # noqa: E731
    q, k, v, gates = map(project, ("q", "k", "v", "gates"))
    selected, window = [(k, v)] * 2 if name == "means" else [[project(f"{n}_{b}") for n in "kv"] for b in ("selected", "window")]
    maps = {}
    for kind, n in (("keys", "k"), ("values", "v")) if name == "paper" else ():
        maps |= {f"{kind}_{part}": p[f"compress_{n}_{part.split('_')[0]}"] for part in Perceptron._fields}
    keys = [maps[f"keys_{part}"] for part in Perceptron._fields] if maps else None
    index = choice(q, k, mixer, lambda x: compressed_attention.compress(x, keys))
    branches = (
        compressed_attention.loop(q, k, v, *mixer._compressed(), **maps),
        block_sparse_attention.loop(q, *selected, index, mixer.block),
        attention.loop(q, *window, mixer.window),
    )
    y = sum(y / (1 + np.exp(-gates[..., i, None])) for i, y in enumerate(branches))
    assert compare.error(got, np.einsum("bthk,hkd->btd", y, p["o"]["kernel"])) < compare.FLOAT64


REFUSED = (
    *({"alibi": True}, {"sink": True}, {"cap": 5.0}, {"window": None}, {"block": 0}, {"selected": 0}, {"stride": 3}),
    *({"ring": "int8"}, {"compressed_block": 128}, {"compressed_block": 32, "stride": 12}),
)


@pytest.mark.parametrize("fields", REFUSED, ids=str)
def test_refused_options(fields):
    with pytest.raises(UserError, match="native sparse attention|ring"):
        NativeSparseAttention(width=16, layers=2, **fields).init_state(1, 8)
