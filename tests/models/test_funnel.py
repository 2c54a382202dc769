"""The Funnel Transformer: pooling by its definition, padding and documents of a row, training, and refused configs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxseq
from jaxseq.compat import enable_x64
from jaxseq.config import base, finish
from jaxseq.models._pooled_attention import RelativeAttention, Resolution, pool, unpool
from jaxseq.testing import compare, networks
from jaxseq.train import prepare

SMALL = {"width": 8, "heads": 2, "hidden": 12, "blocks": "1 2 1", "repeats": "1 2 1", "decoder": 1, "vocab": 31}
TIME = 14


def config(**more):
    return finish(base("funnel"), **{f"model.{name}": value for name, value in (SMALL | more).items()})


@functools.cache
def read(**more):
    """The hidden values of a small float64 model as a function of tokens and pos."""
    model = jaxseq.build(config(dtype="float64", **more))
    params = networks.moved(model.init(jax.random.key(0))["params"], jax.random.key(1))
    return jax.jit(lambda tokens, pos=None: model.apply({"params": params}, tokens, pos).hidden)


@pytest.fixture(autouse=True, scope="module")
def double():
    with enable_x64(True):
        yield


def tokens(seed=0):
    return np.random.default_rng(seed).integers(0, 31, (1, TIME)).astype(np.int32)


def level(*documents):
    document_BT = jnp.asarray([documents])
    return Resolution(document_BT, document_BT, jnp.arange(len(documents))[None])


@pytest.mark.parametrize("time", (3, 4, 7, 8))
def test_pooling(time):
    """The first token alone, then means of two; the last token is dropped, or stands alone if another is dropped after it."""
    x = np.random.default_rng(0).normal(size=(1, time, 2))
    kept = [x[0, :1]] + [x[0, i : min(i + 2, time - 1)] for i in range(1, time - 1, 2)]
    for kind in ("mean", "max"):
        got, after = pool(jnp.asarray(x), level(*time * [1]), kind)
        np.testing.assert_allclose(got[0], [getattr(part, kind)(axis=0) for part in kept])
    np.testing.assert_array_equal(after.types_BT[0], [0, *range(1, time - 1, 2)])
    np.testing.assert_array_equal(after.position_T(), [-1, *range(1, time - 1, 2)])
    assert (after.key_BT == 1).all()


def test_pooling_keeps_documents_and_padding_apart():
    x = jnp.arange(8.0)[None, :, None] + 1
    got, after = pool(x, level(1, 1, 1, 1, 2, 2, 0, 0), "mean")  # pairs: 0; 1 and 2; 3 and 4; 5 and 6; token 7 is dropped
    np.testing.assert_array_equal(got[0, :, 0], [1, 2.5, 4, 6])
    np.testing.assert_array_equal(after.document_BT[0], [1, 1, 1, 2])
    np.testing.assert_array_equal(after.key_BT[0], [1, 1, 0, 0])
    back = unpool(got, after.document_BT, jnp.asarray([[1, 1, 1, 1, 2, 2, 0, 0]]), 2)
    np.testing.assert_array_equal(back[0, :, 0], [1, 2.5, 2.5, 4, 0, 6, 0, 0])


def test_attention():
    """Its equation, one pair of tokens after another, for queries of the next level."""
    rng, layer = np.random.default_rng(0), RelativeAttention(8, 2, 3, jax.nn.initializers.normal(0.5), dtype=jnp.float64)
    x, source = rng.normal(size=(1, 4, 8)), rng.normal(size=(1, 8, 8))
    key = level(*8 * [1])._replace(types_BT=jnp.asarray([[2, 0, 0, 0, 1, 1, 1, 1]]))
    query = pool(jnp.asarray(source), key, "mean")[1]
    variables = nn.meta.unbox(layer.init(jax.random.key(0), x, source, query, key, False))
    p = jax.tree.map(np.asarray, networks.moved(variables, jax.random.key(1))["params"])
    q, k, v = (np.einsum("td,dhk->thk", given[0], p[n]["kernel"]) for n, given in (("q", x), ("k", source), ("v", source)))
    k, v = k + p["k"]["bias"], v + p["v"]["bias"]
    y = np.zeros((4, 2, 3))
    for i, h in np.ndindex(4, 2):
        scores = []
        for j in range(8):
            score = (q[i, h] + p["r_w"][h]) @ k[j, h]
            if i and j:
                angle = (2 * i - 1 - j) / 10000 ** (np.arange(4) / 4)
                wave = np.concatenate([np.sin(angle), np.cos(angle)])
                same = int(query.types_BT[0, i] == key.types_BT[0, j])
                score += (q[i, h] + p["r_r"][h]) @ (wave @ p["r_kernel"][:, h]) + (q[i, h] + p["r_s"][h]) @ p["r_types"][same, h]
            scores.append(score / np.sqrt(3))
        weights = np.exp(scores - np.max(scores))
        y[i, h] = weights / weights.sum() @ v[:, h]
    wanted = np.einsum("thk,hkd->td", y, p["o"]["kernel"]) + p["o"]["bias"]
    assert compare.error(layer.apply({"params": p}, x, source, query, key, False)[0], wanted) < compare.FLOAT64


def test_lengths():
    whole, short = jaxseq.build(config()), jaxseq.build(config(decoder=0, masked_head=False))

    def length(model, time):
        given = jax.ShapeDtypeStruct((1, time), np.int32)
        return jax.eval_shape(lambda tokens: model.init_with_output(jax.random.key(0), tokens)[0].hidden, given).shape[1]

    assert length(whole, 14) == 14
    assert [length(short, time) for time in (2, 13)] == [2, 4]  # 13, 7, 4


@pytest.mark.parametrize("count", (7, 8))
def test_padding_has_no_effect(count):
    pos = np.where(np.arange(TIME) < count, np.arange(TIME), -1)[None].astype(np.int32)
    first, second = tokens(), np.where(pos >= 0, tokens(), tokens(1))
    out = read()(first, pos)
    np.testing.assert_array_equal(out, read()(second, pos))
    assert np.isfinite(out).all() and not out[:, count:].any() and (out[:, :count] != 0).all()


@pytest.mark.parametrize("count", (7, 8))
def test_a_document_does_not_see_the_other_of_its_row(count):
    pos = np.concatenate([np.arange(count), np.arange(TIME - count)])[None].astype(np.int32)
    before = read()(tokens(), pos)
    for changed in (slice(0, count), slice(count, TIME)):
        other = tokens().copy()
        other[:, changed] = tokens(1)[:, changed]
        same = np.all(before == read()(other, pos), axis=(0, 2))
        kept = np.ones(TIME, bool)
        kept[changed] = False
        assert same[kept].all() and not same[~kept].any()


def test_a_training_step():
    small = config(blocks="1 1", repeats="")
    trainer = prepare(finish(small, **{"train.objective": "masked", "train.batch": 2, "train.length": 16}), jax.devices()[:1])
    batch = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), trainer.abstract_batch())
    grads, values, _ = jax.jit(trainer.gradients)(trainer.init(), batch)
    assert np.isfinite(values["loss"]) and all(np.isfinite(g).all() and np.any(g) for g in jax.tree.leaves(nn.meta.unbox(grads)))


@pytest.mark.parametrize(
    ("fields", "message"),
    (
        ({"blocks": "2 x"}, "numbers from 1"),
        ({"repeats": "1 1"}, "a number for each block"),
        ({"heads": 3}, "not a multiple"),
        ({"decoder": 0}, "masked head needs a decoder"),
        ({"classes": 2}, "a classifier none"),
        ({"pool": "min"}, "no model.pool"),
    ),
)
def test_refused(fields, message):
    with pytest.raises(jaxseq.UserError, match=message):
        jaxseq.build(config(**fields))
